"""Exported policies: the ONNX network plays a real environment as the policy does, and the card says what is known."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from safetensors.torch import load_file

from rlflow import export as export_module
from rlflow.config import resolve
from rlflow.export import ExportError, export
from rlflow.run import build
from rlflow.task import Evaluation
from rlflow.trainer import Loop

ENV = "Hopper-v5"
SIZES = [
    "task.num_steps=32",
    "task.group_size=2",
    "update.updates_per_rollout=10",
    "task.eval_episodes=3",
    "task.video=false",
]
TOLERANCE = 1e-5


def control_loop(tmp_path: Path, *settings: str) -> Loop:
    """An untrained policy whose normaliser has seen something and whose last layer does something."""
    loop = build(resolve("ppo", f"control/{ENV}", [*SIZES, *settings]), tmp_path)
    torch.manual_seed(0)
    for parameter in loop.policy.actor.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    loop.policy.normaliser.update(torch.randn(50, 11) * 2 + 1)
    return loop


def evaluated(loop: Loop) -> Evaluation:
    with torch.no_grad():
        return loop.task.evaluate(loop.policy.eval(), loop.noise("eval"))


@pytest.mark.parametrize("settings", [["task.policy=gaussian"], ["task.policy=flow", "task.flow.eval_solver=heun"]])
def test_the_network_plays_the_environment_as_the_policy_does(tmp_path: Path, settings: list[str]) -> None:
    loop = control_loop(tmp_path, *settings)
    evaluation = evaluated(loop)
    exported = export(loop, evaluation, tmp_path / "out")
    assert exported.max_difference < TOLERANCE
    assert [path.name for path in exported.files] == ["README.md", "config.json", "policy.onnx", "policy.safetensors"]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "policy.onnx")
    assert session.get_modelmeta().custom_metadata_map["rlflow.task"] == f"control/{ENV}"
    returns = []
    for seed in range(3):
        environment = gymnasium.make(ENV)
        observation, _ = environment.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            (action,) = session.run(["action"], {"observation": observation[None].astype(np.float32)})
            observation, reward, terminated, truncated, _ = environment.step(action[0])
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    # Rounding grows along an episode.
    assert returns == pytest.approx([item["return"] for item in evaluation.items], rel=1e-3)
    # Other starts end elsewhere: equal returns are no matter of course.
    assert len(set(returns)) > 1


def test_a_flow_from_noise_has_the_noise_as_an_input_and_one_that_draws_more_is_refused(tmp_path: Path) -> None:
    loop = control_loop(tmp_path, "task.policy=flow", "task.flow.eval_start=noise")
    assert export(loop, evaluated(loop), tmp_path / "out").max_difference < TOLERANCE
    session = onnxruntime.InferenceSession(tmp_path / "out" / "policy.onnx")
    assert [put.name for put in session.get_inputs()] == ["observation", "start"]
    loop = control_loop(tmp_path, "task.policy=flow", "task.flow.eval_solver=sde")
    with pytest.raises(ExportError, match=r"expected task\.flow\.eval_solver euler or heun, found sde"):
        export(loop, evaluated(loop), tmp_path / "sde")
    assert not (tmp_path / "sde").exists()


def test_the_card_and_the_files_say_what_was_trained(tmp_path: Path) -> None:
    loop = build(resolve("fpo", "toy", ["trainer.seed=3", "trainer.budget=96"]), tmp_path)
    exported = export(loop, evaluated(loop), tmp_path / "out")
    # The toy has no acting module: no network, and the card does not speak of one.
    assert (exported.max_difference, sorted(path.name for path in exported.files)) == (
        None, ["README.md", "config.json", "policy.safetensors"]
    )  # fmt: skip
    text = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    (result,) = head["model-index"][0]["results"]
    scores = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert scores["score"] == pytest.approx(evaluated(loop).metrics["score"], abs=1e-4)
    assert "0 rollouts of a budget of 96.\nSeed 3, policy" in text
    assert "onnx" not in text
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(json.dumps(loop.config.resolved))
    kept = load_file(tmp_path / "out" / "policy.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in loop.policy.state_dict().items())


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = control_loop(tmp_path)
    evaluation = evaluated(loop)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ExportError, match=r"pip install 'rlflow\[onnx\]'"):
            export(loop, evaluation, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(export_module, "_difference", lambda *_: 0.5)
        with pytest.raises(ExportError, match=r"found a difference of 0\.5"):
            export(loop, evaluation, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="expected a folder that does not exist"):
        export(loop, evaluation, tmp_path / "out")
