from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlflow.random import Noise, generator
from rlflow.rollout import Rollout
from rlflow.testing import TaskCheck, task_checks
from tasks.reasoning.character_model import EOS, PAD_ID, character_config, fresh_model
from tasks.reasoning.code import BASE_PASS_AT_1, Code
from tasks.reasoning.code_mini import FAILURES, CodeMiniProblem
from tasks.reasoning.code_mini_data import problems
from tasks.reasoning.code_pretrain import RECIPE
from tasks.reasoning.pretrain import write_base

# Two standard errors of 1,200 completions at .4 are .028.
SAMPLING_ERROR = 0.03


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    config = character_config(RECIPE.characters, hidden_size=32, num_layers=1, intermediate_size=32, max_positions=80)
    write_base(fresh_model(config, seed=0), RECIPE.tokenizer(), folder)
    return folder


def small(base: Path) -> Code:
    return Code(base=str(base), groups_per_rollout=3, group_size=2, evaluation_prompts=4, evaluation_samples=8)


@pytest.mark.parametrize("check", task_checks(), ids=lambda check: check.__name__)
def test_conformance(check: TaskCheck, base: Path) -> None:
    check(small(base))


def test_rewards_and_failures_by_hand(base: Path) -> None:
    texts = {
        "sum(x*2 for x in a if x>3)$": "correct",
        "sum([y for y in[x+x for x in a]if y>7])$": "correct",
        "sum(x*2 for x in a if x>3)": "failure_unfinished",
        "sum(x*2 for x in a if x>7)$": "failure_wrong",
        "sum(x*2 for x in a$": "failure_syntax",
        "a+a$": "failure_forbidden",
        "max(a)$": "failure_runtime",
        "sum(0*len([[[x for x in a]for y in a]for x in a])for y in a)$": "failure_steps",
    }
    task = small(base)
    tokenizer = task.checkpoint.tokenizer
    rows = [tokenizer(text.replace("$", EOS), add_special_tokens=False)["input_ids"] for text in texts]
    width = max(map(len, rows))
    mask = torch.arange(width) < torch.tensor(list(map(len, rows)))[:, None]
    rollout = Rollout(
        context={},
        action={"token": torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows])},
        mask=mask,
        group=torch.zeros(len(rows), dtype=torch.int64),
        reward=torch.zeros(mask.shape),
        terminated=torch.zeros_like(mask),
        boundary=torch.zeros_like(mask),
        extras={"problems": [CodeMiniProblem.parse("*2,>7,sum:")] * len(rows)},
    )
    scored = task.score(rollout)
    assert scored.reward.sum(1).tolist() == [1.0, 1.0] + [0.0] * 6
    # 26 characters and the end.
    assert scored.reward[0, 26] == 1.0
    found = [name for row in range(len(rows)) for name, term in scored.reward_terms.items() if term[row] == 1.0]
    assert found == list(texts.values())
    assert set(scored.reward_terms) == {"correct", *(f"failure_{kind}" for kind in FAILURES)}


def test_the_sets_are_the_frozen_ones(base: Path) -> None:
    task = small(base)
    assert [task.training_problem(start) for start in task.starts()] == list(problems(held_out=False))
    assert set(task.evaluation_problems()) <= set(problems(held_out=True))
    assert len(task.frozen_problems()) == 4


def test_the_shipped_base_scores_its_anchor() -> None:
    """The whole frozen set with the fixed draws; other kernels may change a few samples."""
    task = Code(evaluation_samples=8)
    metrics = task.evaluate(task.build_policy(frozenset()), Noise(generator=generator(0, "test"))).metrics
    assert metrics["score"] == pytest.approx(BASE_PASS_AT_1, abs=SAMPLING_ERROR)
