"""How often the board's intervals hold the truth, and how often its tests see differences that are not there.

Simulates boards whose truth is known: three tasks of different noise, seeds drawn from a distribution with mean 0.

    python tests/benchmarks/statistics_quality.py [--boards 2000]

Coverage should be 95 %, false positives at most 5 %. Prints Markdown; a few minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import combinations

import numpy as np

from rlflow.comparison import SIGNIFICANCE, holm, improvement_interval, permutation_test
from rlflow.stats import FloatArray, Scores, headline, interval

NOISE = {"quiet": 0.02, "middle": 0.1, "loud": 0.25}
NUM_REPLICATES = 2_000
NUM_ENTRANTS = 5
NUM_SEEDS = (3, 5, 10)

Draw = Callable[[np.random.Generator, int], FloatArray]
# Each with mean 0 and variance 1.
DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda generator, n: generator.normal(size=n),
    "skewed (exponential)": lambda generator, n: generator.exponential(size=n) - 1.0,
    "two modes (one seed in five fails)": lambda generator, n: (generator.random(n) < 0.8) * 2.5 - 2.0,
}


def simulate(draw: Draw, num_seeds: int, generator: np.random.Generator) -> Scores:
    """One entrant without any true effect."""
    return {task: scale * draw(generator, num_seeds) for task, scale in NOISE.items()}


def coverage(draw: Draw, num_seeds: int, num_boards: int, generator: np.random.Generator) -> tuple[float, float, float]:
    """Shares of boards where M's expanded limits, its plain limits, and those of P(improvement) hold the truth."""
    hits = np.zeros(3)
    for _ in range(num_boards):
        first, second = simulate(draw, num_seeds, generator), simulate(draw, num_seeds, generator)
        limits = interval(first, headline, generator, num_replicates=NUM_REPLICATES)
        better = improvement_interval(first, second, generator, NUM_REPLICATES)
        hits += (
            limits.low <= 0.0 <= limits.high,
            limits.plain_low <= 0.0 <= limits.plain_high,
            better.low <= 0.5 <= better.high,
        )
    expanded, plain, improvement = hits / num_boards
    return float(expanded), float(plain), float(improvement)


def false_positives(draw: Draw, num_seeds: int, num_boards: int, generator: np.random.Generator) -> tuple[float, float]:
    """Share of pairs called different, and share of boards with at least one such pair after Holm."""
    single, family = 0, 0
    pairs = list(combinations(range(NUM_ENTRANTS), 2))
    for _ in range(num_boards):
        entrants = [simulate(draw, num_seeds, generator) for _ in range(NUM_ENTRANTS)]
        p_values = [permutation_test(entrants[a], entrants[b], generator).p_value for a, b in pairs]
        single += sum(p < SIGNIFICANCE for p in p_values)
        family += min(holm(p_values)) < SIGNIFICANCE
    return single / (num_boards * len(pairs)), family / num_boards


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--boards", type=int, default=2_000, help="simulated boards of each row")
    num_boards = parser.parse_args().boards
    generator = np.random.default_rng(0)
    print(f"{num_boards} boards a row; standard error of a share of 95 %: {(0.95 * 0.05 / num_boards) ** 0.5:.3f}\n")
    print("| scores | seeds | M expanded | M plain percentile | P(improvement) |\n|---|---|---|---|---|")
    for name, draw in DISTRIBUTIONS.items():
        for num_seeds in NUM_SEEDS:
            shares = coverage(draw, num_seeds, num_boards, generator)
            print(f"| {name} | {num_seeds} | " + " | ".join(f"{share:.3f}" for share in shares) + " |", flush=True)
    print("\n| scores | seeds | pairs called different | boards with a false pair (Holm) |\n|---|---|---|---|")
    for name, draw in DISTRIBUTIONS.items():
        for num_seeds in NUM_SEEDS[:2]:
            one, any_pair = false_positives(draw, num_seeds, max(1, num_boards // 4), generator)
            print(f"| {name} | {num_seeds} | {one:.3f} | {any_pair:.3f} |", flush=True)


if __name__ == "__main__":
    main()
