"""Untrained score of control environments: what `tasks/control/anchors.yaml` gives as base.

    python tests/benchmarks/anchors.py [--ids Reacher-v5 CheetahRun-v1 ...] [--seeds 5]

Builds the Gaussian policy from each initialisation seed and judges it as every evaluation does: mean action, ten
episodes, raw returns. Prints one line of YAML per environment, with the score of each seed beside it.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from rlflow.config import resolve_task
from rlflow.launch import quiet_libraries
from rlflow.random import Noise, generator

FPO_TABLE_1 = (
    "BallInCupCatch-v1", "CartpoleBalance-v1", "CheetahRun-v1", "FingerSpin-v1", "FingerTurnEasy-v1",
    "FingerTurnHard-v1", "FishSwim-v1", "PointMassEasy-v1", "ReacherEasy-v1", "ReacherHard-v1",
)  # fmt: skip


def untrained(env_id: str, seed: int) -> float:
    """Score of the policy that the seed initialises."""
    task = resolve_task(f"control/{env_id}", ["task.video=false"])
    torch.manual_seed(seed)
    try:
        return task.evaluate(task.build_policy(frozenset()), Noise(generator=generator(0))).metrics["score"]
    finally:
        task.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ids", nargs="+", default=FPO_TABLE_1)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    quiet_libraries()
    for env_id in options.ids:
        scores = [untrained(env_id, seed) for seed in range(options.seeds)]
        shown = ", ".join(f"{score:.1f}" for score in scores)
        print(f"{env_id}: {{base: {statistics.fmean(scores):.1f}}}  # {shown}", flush=True)


if __name__ == "__main__":
    main()
