"""The frozen evaluation of a pipeline: kinds, guard prompts, diversity, comparison with the base, what is recorded."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rlflow.config import resolve
from rlflow.identity import cell_identity
from rlflow.random import Noise, generator
from rlflow.task import Evaluation
from tasks.image.judging import by_kind, kind_of
from tasks.image.pipelines.settings import JudgeSettings, TrainedSettings
from tasks.image.prompt_sets import read_prompts
from tasks.image.prompted import Prompted
from tasks.image.rewards import Prompt, Reward
from tests.tasks.image.rewards.tiny_models import save_clip
from tests.tasks.image.tiny_task import FLOW, make, save_folder

GUARD = ["one", "two", "six"]


@dataclass(kw_only=True)
class Letters(Reward):
    """Length of the prompt, whatever the picture shows; remembers what it was asked."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        ASKED.extend(prompt.text for prompt in prompts)
        return torch.tensor([float(len(prompt.text)) for prompt in prompts])


ASKED: list[str] = []
LETTERS = f"{__name__}:Letters"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_folder(tmp_path_factory.mktemp("judging"))
    lines = [{"prompt": "a cat on a mat", "tag": "Two objects"}, {"prompt": "a dog", "tag": "one"},
             {"prompt": "a bus", "tag": "one"}]  # fmt: skip
    (folder / "kinds.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "guard.jsonl").write_text("\n".join(json.dumps({"prompt": t, "tag": t[0]}) for t in GUARD))
    return folder


def judged(folder: Path, task: Prompted, policy: Any = None) -> Evaluation:
    torch.manual_seed(0)
    chosen = task.build_policy(frozenset({"log_prob"})) if policy is None else policy
    return task.evaluate(chosen, Noise(generator=generator(0)))


def settings(folder: Path, **changes: Any) -> JudgeSettings:
    given = {
        "prompts": str(folder / "kinds.jsonl"),
        "guard_prompts": str(folder / "guard.jsonl"),
        "images_per_prompt": 2,
    }
    return JudgeSettings(**(given | changes))


def test_scores_by_kind_by_hand(folder: Path) -> None:
    task = make(folder, judge=settings(folder), rewards={"letters": {"reward": LETTERS, "weight": 2.0}})
    metrics = judged(folder, task).metrics
    # 14, 5 and 5 letters: a mean of 8, twice that in the score.
    assert metrics["letters"] == pytest.approx(8)
    assert metrics["score"] == pytest.approx(16)
    assert metrics["score_two_objects"] == pytest.approx(28)
    assert metrics["score_one"] == pytest.approx(10)
    assert metrics["letters_one"] == pytest.approx(5)


def test_kinds_become_parts_of_names() -> None:
    assert kind_of(Prompt(text="a", meta={"tag": "Colour & place"})) == "colour_place"
    assert kind_of(Prompt(text="a")) == ""
    mixed = [Prompt(text="a", meta={"tag": "x"}), Prompt(text="b")]
    assert by_kind(mixed, {"score": torch.tensor([1.0, 3.0])}) == {"score_x": 1.0, "score_other": 3.0}
    assert by_kind(mixed[:1] * 2, {"score": torch.tensor([1.0, 3.0])}) == {}


def test_guard_prompts_are_scored_by_their_own_rewards_alone(folder: Path, tmp_path: Path) -> None:
    ASKED.clear()
    rewards = {"jpeg_compressibility": 1.0, "letters": {"reward": LETTERS, "held_out": True, "guard": True}}
    task = make(folder, judge=settings(folder), rewards=rewards)
    result = judged(folder, task)
    # Two images of each guard prompt, after two of each frozen one and the four that fill the comparison.
    assert ASKED[-6:] == ["one", "one", "two", "two", "six", "six"]
    assert result.metrics["guard_letters"] == 3.0
    assert {"guard_letters_o", "guard_letters_t", "guard_letters_s"} <= set(result.metrics)
    assert not [name for name in result.metrics if "guard_jpeg" in name]
    assert task.guards == ("diversity", "guard_letters")
    assert len(result.items) == 6
    result.files["guard.csv"](tmp_path / "guard.csv")
    with (tmp_path / "guard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == ["one", "one", "two", "two", "six", "six"]
    assert len({row["seed"] for row in rows}) == 6
    # No noise in common with the frozen set.
    assert not {row["seed"] for row in rows} & {str(item["seed"]) for item in result.items}
    result.files["guard.png"](tmp_path / "guard.png")


def test_without_a_guard_no_prompt_is_drawn_and_nothing_else_changes(folder: Path) -> None:
    guarded = {"jpeg_compressibility": {"guard": True}}
    with_, without = (
        judged(folder, make(folder, judge=settings(folder), rewards=r)) for r in (guarded, {"jpeg_compressibility": 1})
    )
    assert without.items == with_.items
    assert {name for name in with_.metrics if not name.startswith("guard_")} == set(without.metrics)
    assert not [name for name in without.files if name.startswith("guard")]


def test_guard_prompts_that_are_trained_on_are_refused(folder: Path) -> None:
    judge = settings(folder, guard_prompts=str(folder / "train.txt"))
    task = make(folder, judge=judge, rewards={"jpeg_compressibility": {"guard": True}})
    with pytest.raises(ValueError, match=r"task\.judge\.guard_prompts: 4 of 4 evaluation prompts are trained on"):
        task.starts()


def test_own_guard_prompts_are_of_many_kinds_and_for_evaluation_only() -> None:
    found = read_prompts("guard", split="test", count=0)
    kinds = {prompt.meta["tag"] for prompt in found.prompts}
    assert len(kinds) == 12
    assert len(found) == 96
    assert read_prompts("guard", split="test", count=5).prompts == found.prompts[:5]
    with pytest.raises(ValueError, match="guard prompts are for evaluation"):
        read_prompts("guard", split="train")


def test_diversity_is_that_of_the_images_of_a_prompt(folder: Path, tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "clip")
    task = make(folder, judge=settings(folder, diversity_model=str(clip)))
    metrics = judged(folder, task).metrics
    assert 0.01 < metrics["diversity"] < 1
    assert 0 < metrics["clip_diversity"] < 1
    task.close()
    assert task._judge._eyes._clip is None
    single = make(folder, judge=settings(folder, images_per_prompt=1))
    assert "diversity" not in judged(folder, single).metrics
    assert single.guards == ()
    # Every picture from the same noise: none differs from another.
    task._embeddings.adapter.initial = lambda seeds: torch.zeros(len(seeds), *task._embeddings.adapter.shape)
    assert judged(folder, task).metrics["diversity"] == 0.0


def pixels(result: Evaluation, path: Path) -> np.ndarray:
    result.files["base_and_trained.png"](path)
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.parametrize("rank", [2, 0])
def test_the_base_stays_beside_what_was_trained(folder: Path, tmp_path: Path, rank: int) -> None:
    task = make(folder, judge=settings(folder), trained=TrainedSettings(lora_rank=rank, lora_alpha=4.0))
    torch.manual_seed(0)
    policy = task.build_policy(frozenset({"log_prob"}))
    first = pixels(judged(folder, task, policy), tmp_path / "a.png")
    # Pairs of 256 pixels with 8 around each, below 32 pixels of text: equal halves before training.
    base, trained = np.s_[32:288, 8:264], np.s_[32:288, 272:528]
    left, right = first[base], first[trained]
    assert np.array_equal(left, right)
    before = torch.get_rng_state()
    with torch.no_grad():
        for parameter in policy.actor.parameters():
            if parameter.requires_grad:
                parameter += 0.05
    later = pixels(judged(folder, task, policy), tmp_path / "b.png")
    assert np.array_equal(later[base], left)
    assert not np.array_equal(later[trained], right)
    # A process that only has the trained weights, as `rlflow eval` of a checkpoint, draws the same base.
    fresh = make(folder, judge=settings(folder), trained=task.trained)
    assert np.array_equal(pixels(judged(folder, fresh, policy), tmp_path / "c.png"), later)
    torch.set_rng_state(before)
    expected = torch.rand(1)
    torch.set_rng_state(before)
    task._judge._base = None
    task.evaluate(policy, Noise(generator=generator(0)))
    assert torch.equal(torch.rand(1), expected)


def test_the_comparison_can_be_switched_off(folder: Path) -> None:
    assert "base_and_trained.png" not in judged(folder, make(folder, judge=settings(folder, compare=False))).files


def test_what_made_the_pictures_is_written_down(folder: Path, tmp_path: Path) -> None:
    def written(task: Prompted) -> dict[str, Any]:
        judged(folder, task).files["generation.json"](tmp_path / "generation.json")
        found: dict[str, Any] = json.loads((tmp_path / "generation.json").read_text())
        return found

    task = make(folder, judge=settings(folder, guidance=2.0, seed=7))
    found = written(task)
    assert found["steps"] == FLOW.eval_steps
    assert found["times"] == task._embeddings.adapter.grid(FLOW.eval_steps).tolist()
    assert (found["guidance"], found["noise_seed"], found["height"], found["width"]) == (2.0, 7, 16, 16)
    assert (found["solver"], found["num_prompts"], found["images_per_prompt"]) == ("euler", 3, 2)
    assert found["prompts_sha256"] == read_prompts(str(folder / "kinds.jsonl")).digest
    assert "sde" not in found
    stochastic = make(folder, judge=task.judge, flow=replace(FLOW, eval_solver="sde", noise_level=0.3))
    assert written(stochastic)["noise_level"] == 0.3


def test_the_noise_of_a_stochastic_sampler_does_not_depend_on_the_pass(folder: Path) -> None:
    flow = replace(FLOW, eval_solver="sde", noise_level=0.7)
    tasks = [make(folder, judge=settings(folder), flow=flow, rows_per_pass=rows) for rows in (2, 6)]
    pictures = [judged(folder, task).files["images.png"].images for task in tasks]
    # Passes of other sizes round in another way.
    assert torch.allclose(*pictures, rtol=0.0, atol=1e-3)
    assert (pictures[0] - pictures[0].roll(1, 0)).abs().amax((1, 2, 3)).min() > 0.05


def test_names_of_the_own_metrics_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"task\.rewards: \['score'\] are names of the evaluation's own metrics"):
        make(folder, rewards={"score": {"reward": "jpeg_compressibility"}})


def test_guards_of_the_configuration_reach_the_board() -> None:
    words = ["task.rewards.ocr=1", "task.rewards.pickscore.held_out=true", "task.rewards.pickscore.guard=true"]
    config = resolve("flow_grpo", "image/prompted", [*words, "task.judge.images_per_prompt=2"])
    assert cell_identity(config, suite="a@1").guards == ("diversity", "guard_pickscore")
