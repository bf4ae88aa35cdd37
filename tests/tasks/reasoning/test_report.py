from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.reasoning.countdown_puzzle import FAILURES, Puzzle, verify
from tasks.reasoning.report import answer_metrics, as_answers, evaluation
from tasks.reasoning.verdict import Completion, Judged, Verdict

EXACT = 1e-12

PUZZLE = Puzzle((4, 3, 7, 1), 14)
RIGHT, SWAPPED, OTHER, WRONG = "4+7=11,3;11+3=14,0", "7+4=11,3;11+3=14,0", "7+7=14,0", "4+7=11,3"


def answers(*texts: str) -> list[Judged]:
    return [(Completion(text=text, finished=True, num_tokens=len(text) + 1), verify(PUZZLE, text)) for text in texts]


def test_metrics_of_two_prompts_by_hand() -> None:
    samples = [answers(RIGHT, SWAPPED, OTHER, WRONG), answers(WRONG, WRONG, "", OTHER)]
    result = evaluation([PUZZLE, PUZZLE], samples, rarefied_size=2, failures=FAILURES)
    metrics = result.metrics
    # 3 of 4 and 1 of 4
    assert metrics["score"] == metrics["pass_at_1"] == pytest.approx(0.5, abs=EXACT)
    # 3 and 1 strings; RIGHT and SWAPPED are one canonical form: 2 and 1
    assert metrics["distinct_strings"] == pytest.approx(2.0, abs=EXACT)
    assert metrics["distinct_canonical"] == pytest.approx(1.5, abs=EXACT)
    # Only the first prompt has two correct samples. Strings a b c: always 2. Canonical a a b: 5/3.
    assert metrics["rarefied_prompts_fraction"] == pytest.approx(0.5, abs=EXACT)
    assert metrics["rarefied_strings"] == pytest.approx(2.0, abs=EXACT)
    assert metrics["rarefied_canonical"] == pytest.approx(5 / 3, abs=EXACT)
    # Of eight samples three miss the target and one, the empty one, is no derivation.
    assert metrics["failure_target"] == pytest.approx(3 / 8, abs=EXACT)
    assert metrics["failure_format"] == pytest.approx(1 / 8, abs=EXACT)
    total = metrics["score"] + sum(metrics[f"failure_{kind}"] for kind in FAILURES)
    assert total == pytest.approx(1.0, abs=EXACT)
    # Lengths with the end of sequence: 19 + 19 + 9 + 9 and 9 + 9 + 1 + 9
    assert metrics["completion_tokens"] == 84 / 8
    assert "pass_at_8" not in metrics
    assert [item["correct"] for item in result.items] == [3, 1]
    assert result.items[1]["rarefied_strings"] is None


def test_rarefied_variety_is_absent_where_it_is_undefined() -> None:
    metrics = evaluation([PUZZLE], [answers(WRONG, OTHER)], rarefied_size=2, failures=FAILURES).metrics
    assert metrics["rarefied_prompts_fraction"] == 0.0
    assert "rarefied_strings" not in metrics
    assert "rarefied_canonical" not in metrics


@dataclass(frozen=True)
class Question:
    prompt: str
    source: str


def voted(*answers: str | None) -> list[Judged]:
    """Samples that say their answer in so many words; `1` is right."""
    return [
        (
            Completion(text=f"it is {answer}", finished=True, num_tokens=3 + i),
            Verdict(None if answer == "1" else "wrong", answer=answer),
        )
        for i, answer in enumerate(answers)
    ]


def test_votes_lengths_and_sources_by_hand(tmp_path: Path) -> None:
    asked = [Question("p", "easy"), Question("q", "easy"), Question("r", "hard")]
    samples = [voted("1", "1", "2", "3"), voted("1", "2", None, None), voted("2", "2", "2", "2")]
    result = evaluation(asked, samples, rarefied_size=2, failures=("wrong",))
    answer_metrics(result, asked, samples)
    metrics = result.metrics
    # 2, 1 and 0 of 4
    assert metrics["score"] == metrics["avg_at_4"] == pytest.approx((0.5 + 0.25) / 3, abs=EXACT)
    # Right; a tie of 1 and 2; wrong
    assert metrics["maj_at_4"] == pytest.approx((1 + 0.5 + 0) / 3, abs=EXACT)
    assert metrics["distinct_answers"] == pytest.approx((3 + 2 + 1) / 3, abs=EXACT)
    assert metrics["score_easy"] == pytest.approx(0.375, abs=EXACT)
    assert metrics["score_hard"] == 0.0
    assert metrics["score_macro"] == pytest.approx(0.1875, abs=EXACT)
    # Tokens 3 4 5 6 of each prompt; the rank .9 * 11 = 9.9 of twelve sorted is a 6
    assert metrics["completion_tokens"] == pytest.approx(4.5, abs=EXACT)
    assert metrics["completion_tokens_max"] == metrics["completion_tokens_p90"] == 6.0
    # Of 12 words `it is x` of each prompt 2 + 3, 2 + 3 (1, 2, None) and 2 + 1 differ
    assert metrics["distinct_1"] == pytest.approx((5 + 5 + 3) / 36, abs=EXACT)
    assert result.items[2]["self_bleu"] == pytest.approx(1.0, abs=EXACT)
    assert metrics["score_low"] < metrics["score"] < metrics["score_high"]
    assert metrics["maj_at_4_low"] < metrics["maj_at_4"] < metrics["maj_at_4_high"]
    result.files["sources.csv"](tmp_path / "sources.csv")
    with (tmp_path / "sources.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["source"], row["prompts"], row["score"], row["maj_at_4"]) for row in rows] == [
        ("easy", "2", "0.375", "0.75"),
        ("hard", "1", "0.0", "0.0"),
    ]


def test_one_source_and_one_prompt_have_no_table_and_no_limits() -> None:
    asked, samples = [Question("p", "easy")], [voted("1", "2")]
    result = evaluation(asked, samples, rarefied_size=2, failures=("wrong",))
    answer_metrics(result, asked, samples)
    assert "sources.csv" not in result.files
    assert not {"score_easy", "score_macro", "score_low", "maj_at_2_high"} & result.metrics.keys()


def test_limits_are_the_same_every_time() -> None:
    asked = [Question(str(i), "easy") for i in range(4)]
    samples = [voted("1", "2"), voted("1", "1"), voted("2", "2"), voted("2", "1")]
    results = [evaluation(asked, samples, rarefied_size=2, failures=("wrong",)) for _ in range(2)]
    for result in results:
        answer_metrics(result, asked, samples)
    assert results[0].metrics == results[1].metrics


def test_answers_are_every_completion_with_its_verdict() -> None:
    @dataclass(frozen=True)
    class Sum:
        prompt: str = "7+7="
        gold: str = "14"

    completion = Completion(text="15", finished=True, num_tokens=3)
    samples = [[(completion, Verdict("arith", answer="15"))], [(completion, Verdict(None, answer="14"))]]
    wrong, right = as_answers([Sum(), PUZZLE], samples, lambda judged: 0.5 * judged[1].correct)
    assert (wrong.inputs, wrong.outputs) == ({"prompt": "7+7=", "expected": "14"}, {"completion": "15"})
    about = {"tokens": 3, "finished": True}
    assert wrong.judged == {"reward": 0.0, "correct": False, "verdict": "arith", "answer": "15", **about}
    assert right.judged == {"reward": 0.5, "correct": True, "verdict": "correct", "answer": "14", **about}
    assert right.inputs == {"prompt": PUZZLE.prompt, "expected": None}
