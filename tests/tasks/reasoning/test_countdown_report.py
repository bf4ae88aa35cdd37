from __future__ import annotations

import pytest

from tasks.reasoning.countdown_puzzle import FAILURES, Puzzle, Verdict, verify
from tasks.reasoning.countdown_report import evaluation

EXACT = 1e-12

PUZZLE = Puzzle((4, 3, 7, 1), 14)
RIGHT, SWAPPED, OTHER, WRONG = "4+7=11,3;11+3=14,0", "7+4=11,3;11+3=14,0", "7+7=14,0", "4+7=11,3"


def answers(*texts: str) -> list[tuple[str, Verdict]]:
    return [(text, verify(PUZZLE, text)) for text in texts]


def test_metrics_of_two_prompts_by_hand() -> None:
    samples = [answers(RIGHT, SWAPPED, OTHER, WRONG), answers(WRONG, WRONG, "", OTHER)]
    result = evaluation([PUZZLE, PUZZLE], samples, rarefied_size=2, completion_tokens=9.5)
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
    assert metrics["completion_tokens"] == 9.5
    assert "pass_at_8" not in metrics
    assert [item["correct"] for item in result.items] == [3, 1]
    assert result.items[1]["rarefied_strings"] is None


def test_rarefied_variety_is_absent_where_it_is_undefined() -> None:
    metrics = evaluation([PUZZLE], [answers(WRONG, OTHER)], rarefied_size=2, completion_tokens=9.0).metrics
    assert metrics["rarefied_prompts_fraction"] == 0.0
    assert "rarefied_strings" not in metrics
    assert "rarefied_canonical" not in metrics
