"""How many questions are solved and in how many ways: pure functions of the samples of one prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb


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
