"""Plans of toy runs on a real store: a few hundred parameters, one decision, milliseconds an iteration."""

from __future__ import annotations

from pathlib import Path

from rlflow.config import resolve
from rlflow.identity import cell_identity
from rlflow.launch import SeedPlan
from rlflow.store import Store

EXPERIMENT = "toys@1-quick"

SUITE = """
name: toys
version: "1"
seeds: 1
algorithms: [ppo, fpo]
tasks:
  toy: {}
settings: {trainer.num_evaluations: 4, trainer.accelerator: cpu}
budgets:
  quick: {settings: {trainer.budget: 96}}
  endless: {settings: {trainer.budget: 16000000, trainer.num_evaluations: 100001}}
"""


def toy_plan(store: Store, folder: Path, *overrides: str, resume: bool = False) -> SeedPlan:
    """PPO on the toy for 6 iterations of 16 pulls, judged at 0, 32, 64 and 96 samples."""
    sizes = ["trainer.budget=96", "trainer.num_evaluations=4", "trainer.accelerator=cpu"]
    config = resolve("ppo", "toy", [*sizes, *overrides])
    return SeedPlan(
        resolved=config.resolved,
        identity=cell_identity(config, suite=EXPERIMENT),
        folder=folder,
        tracking_uri=store.uri,
        results=store.lock_path.parent,
        resume=resume,
    )
