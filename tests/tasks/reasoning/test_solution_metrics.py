from __future__ import annotations

import itertools
import math

import pytest

from tasks.reasoning.solution_metrics import (
    distinct,
    distinct_n,
    majority_at_k,
    pass_at_k,
    rarefied_distinct,
    self_bleu,
    words,
)

EXACT = 1e-12


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        # 1 - C(2,1)/C(4,1) = 1 - 2/4
        (4, 2, 1, 0.5),
        # 1 - C(2,2)/C(4,2) = 1 - 1/6
        (4, 2, 2, 5 / 6),
        # 1 - C(2,3)/C(4,3) = 1 - 0/4
        (4, 2, 3, 1.0),
        # 1 - C(9,5)/C(10,5) = 1 - 126/252
        (10, 1, 5, 0.5),
        (32, 0, 8, 0.0),
        (32, 32, 1, 1.0),
    ],
)
def test_pass_at_k(n: int, c: int, k: int, expected: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        pass_at_k(n, c, k)


def test_distinct_counts_strings() -> None:
    assert distinct(["a", "b", "a"]) == 2
    assert distinct([]) == 0


def test_rarefied_distinct_by_hand() -> None:
    # a a b, two drawn: C(3,2) = 3 pairs. a is missed by C(1,2) = 0 of them, b by C(2,2) = 1: (1 - 0) + (1 - 1/3) = 5/3
    assert rarefied_distinct(["a", "a", "b"], 2) == pytest.approx(5 / 3, abs=EXACT)
    # One drawn is always one kind; all drawn are all kinds.
    assert rarefied_distinct(["a", "a", "b"], 1) == pytest.approx(1.0, abs=EXACT)
    assert rarefied_distinct(["a", "a", "b"], 3) == pytest.approx(2.0, abs=EXACT)


def test_rarefied_distinct_is_the_mean_over_all_draws() -> None:
    solutions = ["a", "a", "a", "b", "b", "c", "d"]
    draws = list(itertools.combinations(solutions, 4))
    mean = sum(len(set(draw)) for draw in draws) / len(draws)
    assert rarefied_distinct(solutions, 4) == pytest.approx(mean, abs=EXACT)


def test_rarefied_distinct_is_undefined_below_its_size() -> None:
    assert rarefied_distinct(["a", "b"], 3) is None
    with pytest.raises(ValueError, match="size"):
        rarefied_distinct(["a"], 0)


@pytest.mark.parametrize(
    ("answers", "correct", "k", "expected"),
    [
        # 2 votes for a, 1 for b
        ("aab", (1, 1, 0), 3, 1.0),
        ("abb", (1, 0, 0), 3, 0.0),
        # a and b lead with 2 votes each, c has 1: half
        ("abcab", (1, 0, 0, 1, 0), 5, 0.5),
        # Blocks aa, bb; the last c is left out: (1 + 0) / 2
        ("aabbc", (1, 1, 0, 0, 0), 2, 0.5),
        # One vote a block: the share of correct samples
        ("abca", (1, 0, 0, 1), 1, 0.5),
        # `-` abstains: a alone leads; nobody votes in the second case
        ("a---", (1, 0, 0, 0), 4, 1.0),
        ("----", (0, 0, 0, 0), 4, 0.0),
        # Equal answers judged differently, 1 of 2
        ("aab", (1, 0, 0), 3, 0.5),
    ],
)
def test_majority_at_k(answers: str, correct: tuple[int, ...], k: int, expected: float) -> None:
    votes = [None if answer == "-" else answer for answer in answers]
    assert majority_at_k(votes, [bool(c) for c in correct], k) == pytest.approx(expected, abs=EXACT)


def test_majority_does_not_depend_on_the_order_of_a_tie() -> None:
    results = {majority_at_k(list(p), [v == "a" for v in p], 4) for p in itertools.permutations("aabb")}
    assert results == {0.5}


@pytest.mark.parametrize(("num_correct", "k"), [(3, 4), (3, 0), (2, 1)])
def test_majority_refuses_impossible_sizes(num_correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="maj@k"):
        majority_at_k(["a"] * 3, [True] * num_correct, k)


def test_words_are_words_and_single_marks() -> None:
    assert words("So x=12, \u03c0r^2.") == ["So", "x", "=", "12", ",", "\u03c0r", "^", "2", "."]


def test_distinct_n_by_hand() -> None:
    texts = [["a", "b", "a"], ["a", "b"]]
    # a b a a b: 2 of 5; ab ba ab: 2 of 3; aba: 1 of 1
    assert distinct_n(texts, 1) == pytest.approx(2 / 5, abs=EXACT)
    assert distinct_n(texts, 2) == pytest.approx(2 / 3, abs=EXACT)
    assert distinct_n(texts, 3) == pytest.approx(1.0, abs=EXACT)
    assert distinct_n(texts, 4) is None


def test_self_bleu_of_equal_and_of_foreign_texts() -> None:
    same = ["a", "b", "c", "d", "e"]
    assert self_bleu([same, same, same]) == pytest.approx(1.0, abs=EXACT)
    assert self_bleu([same, ["v", "w", "x", "y", "z"]]) == 0.0
    # Two words have bigrams only: orders 3 and 4 do not count.
    assert self_bleu([["a", "b"], ["a", "b"]]) == pytest.approx(1.0, abs=EXACT)
    assert self_bleu([same]) is None
    assert self_bleu([same, []]) is None


def test_self_bleu_by_hand() -> None:
    texts = [["a", "b", "c", "d"], ["a", "b", "c", "e", "f"]]
    # abcd: a b c of 4, ab bc of 3; order 2: sqrt(3/4 * 2/3), and its brevity penalty exp(1 - 5/4)
    first = math.sqrt(3 / 4 * 2 / 3) * math.exp(1 - 5 / 4)
    # abcef: a b c of 5, ab bc of 4; longer than its reference: no penalty
    second = math.sqrt(3 / 5 * 2 / 4)
    assert self_bleu(texts, max_n=2) == pytest.approx((first + second) / 2, abs=EXACT)
    # a a a a against a a and a b: clipped at the larger count, 2 of 4; penalty of a nearer, longer text: none
    texts = [["a"] * 4, ["a", "a"], ["a", "b"]]
    # a a: 2 of 2. a b: a of 2.  |2 - 2| is nearest for both: no penalty
    assert self_bleu(texts, max_n=1) == pytest.approx((2 / 4 + 1.0 + 1 / 2) / 3, abs=EXACT)
