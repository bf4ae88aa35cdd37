from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from rlflow.policies.causal_lm import LMConfig
from rlflow.random import Noise, generator
from rlflow.rollout import Rollout
from rlflow.testing import TaskCheck, task_checks
from tasks.reasoning.character_model import EOS_ID, PAD_ID
from tasks.reasoning.checkpoint import Checkpoint
from tasks.reasoning.countdown import BASE_FOLDER, BASE_PASS_AT_1, Countdown
from tasks.reasoning.countdown_data import held_out_pools, training_puzzle
from tasks.reasoning.countdown_puzzle import FAILURES, Puzzle
from tasks.reasoning.language import overlong
from tasks.reasoning.verdict import Completion, Verdict

EXACT = 1e-12
SAMPLING_ERROR = 0.03


def shipped_base() -> Checkpoint:
    return Checkpoint.open(BASE_FOLDER)


def small() -> Countdown:
    return Countdown(groups_per_rollout=3, group_size=2, evaluation_prompts=4, evaluation_samples=8)


def noise(seed: int = 0) -> Noise:
    return Noise(generator=generator(seed, "test"))


def written(task: Countdown, prompt: str, completions: list[str]) -> Rollout:
    """A rollout whose completions are given as text; `$` is the end of sequence."""
    tokenizer = shipped_base().tokenizer
    rows = [tokenizer(text.replace("$", "<eos>"), add_special_tokens=False)["input_ids"] for text in completions]
    width = max(map(len, rows))
    token = torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows])
    mask = torch.arange(width) < torch.tensor(list(map(len, rows)))[:, None]
    none = torch.zeros_like(mask)
    return Rollout(
        context={},
        action={"token": token},
        mask=mask,
        group=torch.zeros(len(rows), dtype=torch.int64),
        reward=torch.zeros(mask.shape),
        terminated=none,
        boundary=none,
        extras={"problems": [Puzzle.parse(prompt)] * len(rows)},
    )


@pytest.mark.parametrize("check", task_checks(), ids=lambda check: check.__name__)
def test_conformance(check: TaskCheck) -> None:
    check(small())


def test_reward_sits_on_the_last_token_of_correct_completions_only() -> None:
    rollout = written(small(), "4371:14>", ["7+7=14,0$", "4+7=11,3;11+3=14,0$", "7+7=14,0", "4+7=11,3$"])
    scored = small().score(rollout)
    assert scored.reward.sum(1).tolist() == [1.0, 1.0, 0.0, 0.0]
    # 8 characters and the end; 18 characters and the end
    assert scored.reward[0, 8] == 1.0
    assert scored.reward[1, 18] == 1.0
    assert scored.reward_terms["correct"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert scored.reward_terms["failure_unfinished"].tolist() == [0.0, 0.0, 1.0, 0.0]
    assert scored.reward_terms["failure_target"].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_every_completion_is_correct_or_has_one_failure() -> None:
    task = small()
    scored = task.score(task.rollout(task.build_policy(frozenset()), torch.tensor([0, 1, 2]), noise()))
    total = sum(scored.reward_terms[name] for name in ("correct", *(f"failure_{kind}" for kind in FAILURES)))
    assert total.tolist() == [1.0] * 6


@pytest.mark.parametrize("completion", ["7<pad>+7=14,0$", "<bos>7+7=14,0$", "7+7=14,0<unk>$", "$7+7=14,0$", "$"])
def test_special_symbols_earn_nothing(completion: str) -> None:
    assert small().score(written(small(), "4371:14>", [completion])).reward.sum() == 0.0


def test_text_behind_the_end_neither_pays_nor_costs() -> None:
    scored = small().score(written(small(), "4371:14>", ["7+7=14,0$;9"]))
    assert scored.reward_terms["correct"].tolist() == [1.0]


def test_rollout_continues_the_prompts_of_its_starts() -> None:
    task = small()
    starts = torch.tensor([5, 5000, 89_999])
    rollout = task.rollout(task.build_policy(frozenset()), starts, noise())
    prompts = shipped_base().tokenizer.batch_decode(rollout.context["prompt"][:, 1:])
    assert prompts == [training_puzzle(s).prompt for s in starts.tolist() for _ in range(2)]
    assert rollout.group.tolist() == [5, 5, 5000, 5000, 89_999, 89_999]
    ends = rollout.action["token"][rollout.terminated]
    assert rollout.terminated.sum(1).tolist() == [1] * 6
    assert (ends == EOS_ID).all()
    assert (rollout.action["token"][~rollout.mask] == PAD_ID).all()
    assert rollout.mask[:, -1].any()


def test_training_starts_never_show_a_held_out_pool() -> None:
    task = small()
    # 3,750 puzzles x 24 orders
    assert len(task.starts()) == 90_000
    shown = {tuple(sorted(training_puzzle(start).pool)) for start in task.starts()[::24]}
    assert not shown & held_out_pools()
    assert len({training_puzzle(start).prompt for start in range(24)}) == 24
    with pytest.raises(IndexError, match="training start"):
        training_puzzle(90_000)


def test_the_shipped_base_scores_the_anchor() -> None:
    # The anchor is the mean over 4,800 samples; 1,200 of them have a standard error of sqrt(.31 * .69 / 1200) = .013.
    task = Countdown(evaluation_samples=8)
    metrics = task.evaluate(task.build_policy(frozenset()), noise()).metrics
    assert metrics["score"] == pytest.approx(BASE_PASS_AT_1, abs=SAMPLING_ERROR)
    assert task.anchors.base == BASE_PASS_AT_1


def test_evaluation_draws_do_not_depend_on_the_size_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    task = small()
    policy = task.build_policy(frozenset())
    whole = task.evaluate(policy, noise())
    monkeypatch.setattr("tasks.reasoning.language.EVALUATION_ROWS", 16)
    assert task.evaluate(policy, noise()).items == whole.items


def test_evaluation_writes_items_and_completions(tmp_path: Path) -> None:
    task = small()
    result = task.evaluate(task.build_policy(frozenset()), noise())
    assert [item["samples"] for item in result.items] == [8] * 4
    mean = sum(item["correct"] for item in result.items) / 32
    assert result.metrics["score"] == result.metrics["pass_at_1"] == pytest.approx(mean, abs=EXACT)
    assert len(result.answers) == 4 * 8
    assert sum(answer.judged["reward"] for answer in result.answers) == pytest.approx(32 * mean, abs=EXACT)
    result.files["completions.csv"](tmp_path / "completions.csv")
    with (tmp_path / "completions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 8
    assert sum(row["verdict"] == "correct" for row in rows) / 32 == pytest.approx(mean, abs=EXACT)


def test_ratio_is_one_after_a_rollout() -> None:
    task = small()
    policy = task.build_policy(frozenset({"log_prob"})).eval()
    rollout = task.rollout(policy, torch.tensor([1, 2, 3]), noise())
    with torch.no_grad():
        first = policy.log_prob(rollout)
        again = policy.log_prob(rollout.replace())
    assert torch.equal(first, again)
    assert (first[rollout.mask] < 0).all()


def test_banned_symbols_take_no_probability() -> None:
    task = small()
    policy = task.build_policy(frozenset({"log_prob"})).eval()
    scored = written(task, "4371:14>", ["7+7=14,0$", "<pad>$"])
    prompt, prompt_mask = shipped_base().encode(["4371:14>"] * 2)
    rollout = scored.replace(context={"prompt": prompt, "prompt_mask": prompt_mask})
    with torch.no_grad():
        log_prob = policy.log_prob(rollout)
    assert torch.isfinite(log_prob[0]).all()
    assert log_prob[1, 0, 0] == float("-inf")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"evaluation_prompts": 151}, "evaluation_prompts: expected 1-150, found 151"),
        ({"evaluation_prompts": 0}, "evaluation_prompts"),
        ({"evaluation_samples": 0}, "evaluation_samples"),
        ({"rarefied_size": 0}, "rarefied_size"),
    ],
)
def test_impossible_sizes_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Countdown(**values)


def test_missing_base_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"task\.base: expected a checkpoint"):
        Countdown(base=str(tmp_path / "absent")).build_policy(frozenset())


def test_any_causal_lm_folder_serves_as_base(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = shipped_base().tokenizer
    GPT2LMHeadModel(
        GPT2Config(vocab_size=22, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    task = Countdown(base=str(tmp_path), groups_per_rollout=1, group_size=2, lm=LMConfig(max_new_tokens=3))
    rollout = task.score(task.rollout(task.build_policy(frozenset()), torch.tensor([0]), noise()))
    assert rollout.mask.shape[1] <= 3
    assert rollout.reward.sum() == 0.0


def test_the_penalty_of_length_rises_over_the_buffer() -> None:
    # Limit 16, buffer 4: nothing up to 12 tokens, then a quarter a token, all of it at 16.
    found = overlong(torch.tensor([3, 12, 13, 15, 16]), 16, 4)
    assert found.tolist() == [0.0, 0.0, 0.25, 0.75, 1.0]


def test_a_text_in_the_buffer_loses_a_part_of_its_reward() -> None:
    # 9 and 19 tokens with the end; limit 20, buffer 8: 0 and 7/8, halved.
    task = Countdown(lm=LMConfig(max_new_tokens=20), overlong_buffer=8, overlong_penalty=0.5)
    scored = task.score(written(task, "4371:14>", ["7+7=14,0$", "4+7=11,3;11+3=14,0$", "4+7=11,3$"]))
    assert scored.reward_terms["correct"].tolist() == [1.0, 1.0, 0.0]
    assert scored.reward_terms["overlong"].tolist() == [0.0, -0.4375, 0.0]
    assert scored.reward.sum(1).tolist() == [1.0, 0.5625, 0.0]
    # It sits on the last token, where the verdict does.
    assert scored.reward[1, 18] == 0.5625
    # An evaluation's answers tell the same rewards.
    completion = Completion(text="4+7=11,3;11+3=14,0", finished=True, num_tokens=19)
    assert task._earned((completion, Verdict(None))) == 0.5625
    assert "overlong" not in small().score(written(small(), "4371:14>", ["7+7=14,0$"])).reward_terms


@pytest.mark.parametrize("options", [{"overlong_buffer": -1}, {"overlong_buffer": 99}, {"overlong_penalty": -1.0}])
def test_a_penalty_of_length_that_cannot_be_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"task\.overlong_buffer: expected 0 \(off\) to lm\.max_new_tokens = 36"):
        Countdown(**options)  # type: ignore[arg-type]
