from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from rlflow.random import Noise, generator
from rlflow.testing import TaskCheck, task_checks
from tasks.reasoning.arithmetic import BASE_FOLDER, BASE_PASS_AT_1, Arithmetic
from tasks.reasoning.arithmetic_pretrain import RECIPE, PlanSource
from tasks.reasoning.arithmetic_problems import NAMES, TEMPLATES, training_problem
from tasks.reasoning.character_model import UNK_ID
from tasks.reasoning.verdict import Completion

EXACT = 1e-12
SAMPLING_ERROR = 0.04


def small() -> Arithmetic:
    return Arithmetic(groups_per_rollout=3, group_size=2, evaluation_prompts=9, evaluation_samples=4)


def noise() -> Noise:
    return Noise(generator=generator(0, "test"))


@pytest.mark.parametrize("check", task_checks(), ids=lambda check: check.__name__)
def test_conformance(check: TaskCheck) -> None:
    check(small())


def test_prompts_reach_the_policy_with_their_white_space() -> None:
    task = small()
    rollout = task.rollout(task.build_policy(frozenset()), torch.tensor([0, 1, 2]), noise())
    texts = task.checkpoint.tokenizer.batch_decode(rollout.context["prompt"])
    assert [text.replace("<pad>", "") for text in texts[::2]] == [
        f"<bos>{training_problem(i).prompt}" for i in range(3)
    ]


def test_the_shipped_base_scores_the_anchor() -> None:
    # The anchor is the mean over 2,880 samples; 720 of them have a standard error of sqrt(.4 * .6 / 720) = .018.
    task = Arithmetic(evaluation_samples=4)
    metrics = task.evaluate(task.build_policy(frozenset()), noise()).metrics
    assert metrics["score"] == pytest.approx(BASE_PASS_AT_1, abs=SAMPLING_ERROR)
    # Room to learn, and something to learn from
    assert 0.25 <= task.anchors.base <= 0.5


def test_evaluation_reports_votes_and_every_form(tmp_path: Path) -> None:
    task = small()
    result = task.evaluate(task.build_policy(frozenset()), noise())
    names = [template.name for template in TEMPLATES]
    assert {f"score_{name}" for name in names} <= result.metrics.keys()
    # One prompt of each form: the mean over forms is the mean over prompts.
    assert result.metrics["score_macro"] == pytest.approx(result.metrics["score"], abs=EXACT)
    assert result.metrics["temperature"] == 1.0
    assert {"maj_at_4", "distinct_answers", "self_bleu", "completion_tokens_p90"} <= result.metrics.keys()
    result.files["sources.csv"](tmp_path / "sources.csv")
    with (tmp_path / "sources.csv").open(encoding="utf-8", newline="") as file:
        assert [row["source"] for row in csv.DictReader(file)] == sorted(names)


def test_verdicts_are_those_of_the_problem_at_their_place() -> None:
    task = small()
    problems = [training_problem(start) for start in (0, 1)]
    texts = [f"#{problems[0].answer}", f"#{problems[0].answer + 1000}"]
    completions = [Completion(text=text, finished=True, num_tokens=5) for text in texts]
    assert [v.failure for v in task.verify(problems, completions)] == [None, "wrong"]


@pytest.mark.parametrize(("mistake_fraction", "right"), [(0.0, 100), (1.0, 0)])
def test_solutions_follow_the_plan_or_a_mistake(mistake_fraction: float, right: int) -> None:
    pairs = PlanSource(seed=0, mistake_fraction=mistake_fraction).draw(100)
    answers = {training_problem(start).prompt: training_problem(start) for start in range(45_000)}
    known = [(answers[prompt], text) for prompt, text in pairs if prompt in answers]
    assert len(known) > 20
    completions = [Completion(text=text, finished=True, num_tokens=9) for _, text in known]
    verdicts = small().verify([problem for problem, _ in known], completions)
    assert sum(v.correct for v in verdicts) * 100 == right * len(known)


def test_every_symbol_has_a_token_and_every_pair_has_room() -> None:
    tokenizer = RECIPE.tokenizer()
    pairs = PlanSource(seed=1, mistake_fraction=0.5).draw(500)
    rows = [tokenizer(prompt + text)["input_ids"] for prompt, text in pairs]
    assert not any(UNK_ID in row for row in rows)
    assert max(map(len, rows)) < RECIPE.max_positions
    assert all(name in "".join(prompt for prompt, _ in pairs) for name in NAMES)


def test_the_shipped_base_is_small() -> None:
    assert sum(f.stat().st_size for f in BASE_FOLDER.iterdir()) < 3_000_000


def test_sizes_beyond_the_frozen_set_are_refused() -> None:
    with pytest.raises(ValueError, match="evaluation_prompts: expected 1-180, found 181"):
        Arithmetic(evaluation_prompts=181)
