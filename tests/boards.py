"""Synthetic cells for tests of the ranking and the report: no MLflow, no training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlflow.board import Board, Cell, SeedResult
from rlflow.cell import SuitePlan
from rlflow.ranking import make_board

ANCHORS = {"control/halfcheetah": (-300.0, 1500.0), "image/shapes": (0.47, 0.9), "reasoning/countdown": (0.33, 0.9)}


def make_cell(algorithm: str, task: str, finals: Sequence[float], *, num_launched: int = 0, **changes: object) -> Cell:
    """A cell whose seeds have the normalised scores `finals`; anchors 0 and 10 where the task has none."""
    base, reference = ANCHORS.get(task, (0.0, 10.0))
    seeds = tuple(make_seed(seed, z, base, reference) for seed, z in enumerate(finals))
    values: dict[str, object] = {
        "task_version": "1",
        "policy": "default",
        "cell_id": f"v1-{algorithm}-{task}",
        "budget": 1000,
        "launched": tuple(range(max(num_launched, len(finals)))),
        "seeds": seeds,
    }
    return Cell(
        algorithm=algorithm,
        task=task,
        anchor_base=base,
        anchor_reference=reference,
        **(values | changes),  # type: ignore[arg-type]
    )


def make_seed(seed: int, z: float, base: float, reference: float) -> SeedResult:
    """A finished seed whose curve rises from 0 to `z` in 11 evaluations, at a steady pace."""
    steps = tuple(range(0, 1001, 100))
    wiggle = 0.03 * np.sin(np.arange(11) * (seed + 1.7))
    heights = z * (1 - np.exp(-np.arange(11) / 3)) + np.where(np.arange(11) > 0, wiggle, 0.0)
    return SeedResult(
        seed=seed,
        outcome="finished",
        steps=steps,
        scores=tuple(float(base + (reference - base) * height) for height in heights),
        seconds=tuple((60.0 + seed) * step / 1000 for step in steps),
        final=base + (reference - base) * z,
        normalised=z,
        wall_s=60.0 + seed,
        hardware="CPU x 2",
        run_id=f"run{seed}",
    )


def full_board() -> Board:
    """Five algorithms on three tasks with five seeds; one diverged seed, one incomplete entrant, two footnotes."""
    centres = {
        "flow_grpo": (0.55, 0.62, 0.75),
        "fpo": (0.60, 0.40, 0.72),
        "flowrl": (0.78, 0.35, 0.77),
        "ppo": (0.85, 0.30, 0.76),
        "reinforce_pp": (0.50, 0.20, 0.74),
    }
    generator = np.random.default_rng(5)
    cells = []
    for algorithm, heights in centres.items():
        for task, height in zip(ANCHORS, heights, strict=True):
            finals = [float(z) for z in generator.normal(height, 0.06, 5)]
            notes = {
                ("flow_grpo", "reasoning/countdown"): "GRPO: on a causal LM the group-relative update is GRPO.",
                ("fpo", "reasoning/countdown"): "The bound is tight here: FPO is PPO-like with one sequence ratio.",
            }
            cell = make_cell(algorithm, task, finals, note=notes.get((algorithm, task), ""))
            if (algorithm, task) == ("reinforce_pp", "image/shapes"):
                cell = make_cell(algorithm, task, finals[:3], num_launched=5)
            if (algorithm, task) == ("flowrl", "control/halfcheetah"):
                lost = SeedResult(
                    seed=4, outcome="diverged", detail="loss at 600", final=-300.0, normalised=0.0, wall_s=30.0
                )
                cell = make_cell(algorithm, task, finals[:4], num_launched=5, seeds=(*cell.seeds[:4], lost))
            cells.append(cell)
    plan = SuitePlan(digest="d1", algorithms=tuple(centres), tasks=tuple(ANCHORS), seeds=(0, 1, 2, 3, 4))
    return make_board("core@1", "d1", cells, plan=plan, provenance=("commit 0123456789", "hardware CPU x 2"))
