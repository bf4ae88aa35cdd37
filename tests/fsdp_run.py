"""Train a random language model in two gloo processes with sharded weights, one run after the other.

python -m tests.fsdp_run FOLDER "ALGORITHM key=value ..." "ALGORITHM resume=CHECKPOINT key=value ..."
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.distributed.tensor import DTensor

from rlflow import distributed
from rlflow.checkpoint import read_checkpoint
from rlflow.config import resolve
from rlflow.launch import CHECKPOINT
from rlflow.run import build_trainer
from rlflow.trainer import Loop
from tests.fakes import Recorder

SIZES = (
    "task.groups_per_rollout=4",
    "task.group_size=2",
    "task.lm.max_new_tokens=8",
    "task.evaluation_prompts=2",
    "task.evaluation_samples=2",
    # A random model solves nothing; what it earns tells lengths apart.
    "task.overlong_buffer=8",
    "update.lr=0.001",
    "trainer.budget=24",
    "trainer.num_evaluations=4",
    "trainer.accelerator=cpu",
)
"""Three iterations of eight completions; a checkpoint after each."""
MIDDLE, AT = "middle.ckpt", 16


class Watch(L.Callback):
    """Keeps the checkpoint of the second iteration, and how many weights this process has of how many."""

    def __init__(self) -> None:
        self.held: tuple[int, int] = (0, 0)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        weights = list(pl_module.policy.parameters())
        local = sum((w.to_local() if isinstance(w, DTensor) else w).numel() for w in weights)
        self.held = (local, sum(w.numel() for w in weights))
        if pl_module.is_first_rank and pl_module.samples == AT:
            shutil.copy(pl_module.folder / CHECKPOINT, pl_module.folder / MIDDLE)


def new_loop(run: str, base: Path, folder: Path, *overrides: str) -> Loop:
    """Before its first iteration."""
    algorithm, *given = run.split()
    config = resolve(algorithm, "reasoning/countdown", [*SIZES, f"task.base={base}", *given, *overrides])
    folder.mkdir(parents=True, exist_ok=True)
    return Loop(config, Recorder(), folder)  # type: ignore[arg-type]


def trained(run: str, base: Path, folder: Path, *overrides: str) -> tuple[Loop, Watch]:
    """The loop of a run after its end; `resume=CHECKPOINT` goes on from one."""
    run, _, start = run.partition(" resume=")
    loop, watch = new_loop(run, base, folder, *overrides), Watch()
    if start:
        checkpoint = read_checkpoint(Path(start))
        assert checkpoint is not None
        loop.resume(checkpoint)
    build_trainer(loop.config, folder, [watch]).fit(loop)
    return loop, watch


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    for number, run in enumerate(sys.argv[3:]):
        folder = Path(sys.argv[1]) / str(number)
        loop, watch = trained(run, Path(sys.argv[2]), folder, "trainer.strategy=fsdp", "trainer.devices=2")
        held = folder / f"held-{distributed.rank()}.json"
        held.write_text(json.dumps(watch.held))
        if loop.is_first_rank:
            (folder / "logged.json").write_text(json.dumps(loop.tracker.calls))  # type: ignore[attr-defined]
