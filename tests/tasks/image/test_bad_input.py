"""What a user can get wrong stops the run with a message that says what: before any work, or at the first bad score."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from rlflow.cli import app
from rlflow.store import Store, ensure_experiment, history, search_runs
from tasks.image.pipelines.settings import ModelSettings
from tasks.image.rewards import Prompt, Reward
from tests.tasks.image.tiny_task import FROZEN, TRAINING, arguments, make, save_folder

pytest_plugins = ("tests.mlflow_fixtures",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("bad"))


@dataclass(kw_only=True)
class Broken(Reward):
    """Scores 1, but breaks on prompts that begin with `on`, in the way that `how` names."""

    how: str
    on: str = ""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        scores = torch.ones(len(images))
        hit = [row for row, prompt in enumerate(prompts) if prompt.text.startswith(self.on)]
        if hit and self.how == "raises":
            raise OSError("the judge has left")
        if hit and self.how == "length":
            return scores[1:]
        if hit:
            scores[hit[0]] = float(self.how)
        return scores


BROKEN = f"task.rewards.bad.reward={__name__}:Broken"


def end_of(store: Store, words: list[str]) -> str:
    """What a run that fails says."""
    result = CliRunner().invoke(app, [*words, "--results", str(store.lock_path.parent)])
    assert result.exit_code != 0, result.output
    # Rich breaks lines at the width of the terminal.
    return " ".join(f"{result.output} {result.exception}".split())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nan", "reward 'bad': expected finite scores, found nan for prompt"),
        ("inf", "reward 'bad': expected finite scores, found inf for prompt"),
        ("length", "reward 'bad': expected a tensor [8], found [7] (the first for prompt"),
        ("raises", "reward 'bad' failed on 8 images, the first for prompt"),
    ],
)
def test_a_reward_that_breaks_in_training_ends_the_run_with_its_name(
    store: Store, folder: Path, tmp_path: Path, how: str, message: str
) -> None:
    (tmp_path / "train.txt").write_text("\n".join(f"train {text}" for text in TRAINING))
    words = arguments(folder, "flow_grpo", tmp_path / "run", BROKEN, f"task.rewards.bad.how={how}",
                      "task.rewards.bad.on=train", "trainer.budget=16",
                      f"task.prompts={tmp_path / 'train.txt'}")  # fmt: skip
    said = end_of(store, words)
    assert message in said
    assert f"{message} 'train " in said
    (seed,) = search_runs(store, ensure_experiment(store, "train@1"), {"kind": "seed"})
    assert seed.data.tags["rlflow.outcome"] == "failed"
    assert message in seed.data.tags["rlflow.detail"]
    # The evaluation before the first iteration is all that was recorded: no reward became zero.
    assert [point.step for point in history(store, seed.info.run_id, "eval/score")] == [0]
    assert history(store, seed.info.run_id, "reward/bad") == []


def test_a_reward_that_breaks_in_an_evaluation_ends_the_run(store: Store, folder: Path, tmp_path: Path) -> None:
    words = arguments(folder, "flow_grpo", tmp_path / "run", BROKEN, "task.rewards.bad.how=nan",
                      "task.rewards.bad.held_out=true", "trainer.budget=8",
                      f"task.rewards.bad.on={FROZEN[1]}")  # fmt: skip
    assert f"reward 'bad': expected finite scores, found nan for prompt '{FROZEN[1]}'" in end_of(store, words)


def test_a_reward_whose_weights_are_absent_ends_the_run_at_its_first_score(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    words = ["task.rewards.pickscore.model=/nowhere", "task.rewards.pickscore.held_out=true", "trainer.budget=8"]
    said = end_of(store, arguments(folder, "flow_grpo", tmp_path / "run", *words))
    assert "reward 'pickscore' failed on" in said
    assert "model: no folder /nowhere" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task.model.path=/nowhere"], "expected the folder of a diffusers pipeline or a name on the hub"),
        (["task.height=18"], "task.height: StableDiffusion3Pipeline draws multiples of 4 pixels, found 18"),
        (["task.model.max_tokens=3"], "prompts have more than model.max_tokens = 3 tokens, the first is"),
        (["task.model.negative_prompt=" + "bad " * 30], "task.model.negative_prompt has"),
        (["task.rewards.ocre=1"], "unknown reward 'ocre'; did you mean ocr?"),
        (["task.rewards.ocr.mod=line"], "unknown setting 'mod'; did you mean mode?"),
        (["task.prompts=nowhere.txt"], "no prompts at nowhere.txt"),
        (["task.judge.prompts=nowhere.jsonl"], "no prompts at nowhere.jsonl"),
        (["task.trained.lora_targets=[to_nothing]"], "to_nothing"),
        (
            ["task.group_size=3"],
            "task.rows_per_pass: expected a divisor of groups_per_rollout * group_size = 6, found 4",
        ),
        (["task.group_size=1", "task.rows_per_pass=1", "task.normalise=per_reward"], "expected at least 2, found 1"),
        (["task.group_size=6", "update.updates_per_rollout=5"], "rows per rollout = 12 is not divisible by"),
        (["task.groups_per_rollout=5"], "expected at most one group per training prompt, found 5 for 4 prompts"),
    ],
)
def test_wrong_settings_are_told_before_any_work(
    store: Store, folder: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    given = arguments(folder, "flow_grpo", tmp_path / "run", "trainer.budget=8", *words)
    assert message in end_of(store, given)
    assert not (tmp_path / "run" / "last.ckpt").exists()
    assert search_runs(store, ensure_experiment(store, "train@1"), {"kind": "seed"}) == []


@pytest.mark.parametrize(
    "gone", ["model_index.json", "transformer", "vae", "text_encoder_2", "tokenizer", "scheduler",
             "transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"],
)  # fmt: skip
def test_a_folder_that_lacks_a_part_is_refused(folder: Path, tmp_path: Path, gone: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder / "model", model)
    shutil.rmtree(model / gone) if (model / gone).is_dir() else (model / gone).unlink()
    task = make(folder, model=ModelSettings(path=str(model), dtype="float32", max_tokens=24))
    with pytest.raises(ValueError, match=r"task\.model: expected a complete pipeline at .*model"):
        task.build_policy(frozenset())


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", "transformer_blocks.0.attn.to_q.weight"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_out.weight"),
        ("text_encoder_2/model.safetensors", "text_projection.weight"),
    ],
)
def test_weights_that_lack_a_tensor_are_refused(folder: Path, tmp_path: Path, file: str, tensor: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder / "model", model)
    state = load_file(model / file)
    del state[tensor]
    save_file(state, model / file, {"format": "pt"})
    task = make(folder, model=ModelSettings(path=str(model), dtype="float32", max_tokens=24))
    with pytest.raises(ValueError, match=rf"task\.model: .* lack 1 tensors, the first is .*{tensor}"):
        task.build_policy(frozenset())
