"""How many questions are solved and in how many ways: pure functions of the samples of one prompt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import comb, exp, log


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is correct: 1 - C(n - c, k) / C(n, k).

    Source: Chen et al. 2021 (arXiv 2107.03374), equation 1.

    Raises:
        ValueError: k is not in 1..n, or c not in 0..n.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@k: expected 1 <= k <= {num_samples} samples, found k = {k}")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"pass@k: expected 0 to {num_samples} correct samples, found {num_correct}")
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def distinct(solutions: Sequence[str]) -> int:
    """Number of different solutions."""
    return len(set(solutions))


def rarefied_distinct(solutions: Sequence[str], size: int) -> float | None:
    """Expected number of different solutions among `size` of these drawn without replacement.

    Compares the variety of a weak and a strong policy at the same number of correct samples; without it the policy that
    is right more often looks more varied. sum_i 1 - C(n - n_i, m) / C(n, m), with n_i the copies of solution i.
    Source: Hurlbert 1971, "The nonconcept of species diversity", Ecology 52.

    Returns:
        None where fewer than `size` solutions were given: the number is undefined there, not 0.
    """
    if size < 1:
        raise ValueError(f"rarefied_distinct: expected size >= 1, found {size}")
    total = len(solutions)
    if total < size:
        return None
    draws = comb(total, size)
    return sum(1.0 - comb(total - copies, size) / draws for copies in Counter(solutions).values())


def majority_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """Chance that the commonest answer of k samples is correct, averaged over consecutive blocks of k.

    Samples without an answer do not vote; a block without any vote is wrong. Leaders with equal votes share the block,
    so that ties do not depend on the order of the samples. Source: Wang et al. 2022 (arXiv 2203.11171).

    Args:
        answers: The vote of each sample, equal for equal answers; None abstains.
        correct: Whether each sample is correct; samples with one answer need not agree (their mean counts).
        k: Votes of a block; samples after the last whole block are left out.

    Raises:
        ValueError: k is not in 1..n, or the lengths differ.
    """
    if len(answers) != len(correct) or not 1 <= k <= len(answers):
        raise ValueError(
            f"maj@k: expected 1 <= k <= {len(answers)} and one correctness per answer, "
            f"found k = {k} and {len(correct)} of them"
        )
    blocks = range(0, len(answers) - k + 1, k)
    return sum(_majority(answers[i : i + k], correct[i : i + k]) for i in blocks) / len(blocks)


def words(text: str) -> list[str]:
    """Words and single marks of a text, the units of `distinct_n` and `self_bleu`."""
    return re.findall(r"\w+|[^\w\s]", text)


def distinct_n(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """Different n-grams over all n-grams of the texts of a prompt: 1 where nothing repeats; None without n-grams.

    Falls with length. Source: Li et al. 2016 (arXiv 1510.03055), section 5.
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[Sequence[str]], max_n: int = 4) -> float | None:
    """Mean BLEU of each text against the others of its prompt: 1 where all are equal, near 0 where they share nothing.

    Geometric mean of the clipped n-gram precisions of orders 1 to `max_n` (of the orders that the text is long enough
    for), without smoothing, times the brevity penalty of the reference with the nearest length. Sources: Zhu et al.
    2018 (arXiv 1802.01886), section 3.2.2; Papineni et al. 2002, equations 2 and 3.

    Returns:
        None with fewer than two texts that are not empty: there is nothing to compare.
    """
    filled = [text for text in texts if text]
    if len(filled) < 2:
        return None
    counts = [[Counter(_grams(text, n)) for n in range(1, max_n + 1)] for text in filled]
    return sum(_bleu(i, filled, counts) for i in range(len(filled))) / len(filled)


def _majority(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    leaders = [answer for answer, number in votes.items() if number == most]
    right = Counter(answer for answer, good in zip(answers, correct, strict=True) if good)
    return sum(right[leader] / most for leader in leaders) / len(leaders)


def _bleu(index: int, texts: Sequence[Sequence[str]], counts: Sequence[Sequence[Counter[tuple[str, ...]]]]) -> float:
    length = len(texts[index])
    others = [i for i in range(len(texts)) if i != index]
    logs = []
    for order, grams in enumerate(counts[index]):
        total = grams.total()
        if not total:
            break
        kept = sum(min(number, max(counts[i][order][gram] for i in others)) for gram, number in grams.items())
        if not kept:
            return 0.0
        logs.append(log(kept / total))
    nearest = min((abs(len(texts[i]) - length), len(texts[i])) for i in others)[1]
    return exp(sum(logs) / len(logs) + min(0.0, 1.0 - nearest / length))


def _grams(text: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
