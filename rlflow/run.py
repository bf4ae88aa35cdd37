"""One training seed from start to end: build, track, train, stop, and say how it ended.

`python -m rlflow.run PLAN.json` is the process that the matrix starts; `rlflow train` calls the same function.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch

from rlflow.checkpoint import read_checkpoint, refuse_other_run
from rlflow.config import Config, from_resolved
from rlflow.disk import advice, out_of_space
from rlflow.launch import CHECKPOINT, Progress, SeedPlan, quiet_libraries
from rlflow.points import Points, Report
from rlflow.settings import SHARDED
from rlflow.sharding import Sharded
from rlflow.store import open_store
from rlflow.tracker import MemoryTracker, Outcome, Tracker
from rlflow.tracking import start_seed
from rlflow.trainer import DivergedError, Loop

TRACEBACK = "traceback.txt"
EXIT_CODES: dict[Outcome, int] = {"finished": 0, "diverged": 0, "failed": 1, "interrupted": 130}


class BuildError(RuntimeError):
    """The policy or the environments of a task cannot be made; nothing has been recorded yet."""


class InterruptedRun(BaseException):
    """A signal asked this run to stop."""


class Stop(L.Callback):
    """Ends the run with a checkpoint after the iteration in which a signal came; a second signal ends it at once."""

    def __init__(self, folder: Path, points: Points) -> None:
        self._folder, self._points = folder, points
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM while the block runs; a SIGINT that is ignored stays ignored."""
        signals = [signal.SIGINT, signal.SIGTERM]
        self._before = {s: handler for s in signals if (handler := signal.getsignal(s)) != signal.SIG_IGN}
        self._listen()
        try:
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals back from Lightning, which has put its own handler before this one."""
        self._listen()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A signal that came during the first evaluation, whose checkpoint is written."""
        if self._asked:
            raise InterruptedRun

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the checkpoint of this iteration and end, where asked to or left alone by the matrix."""
        parent = multiprocessing.parent_process()
        if self._asked or (parent is not None and not parent.is_alive()):
            trainer.save_checkpoint(self._folder / CHECKPOINT)
            raise InterruptedRun

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """A resumed run does not log again what lies before its checkpoint: it must have been sent."""
        self._points.flush()

    def _listen(self) -> None:
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Ranks get the signal in different iterations and would wait for each other.
        if self._asked or torch.distributed.is_initialized():
            raise InterruptedRun
        self._asked = True


def train(plan: SeedPlan, report: Report) -> Progress:
    """Run one seed to its end and record how it ended.

    Raises:
        BuildError: The task cannot be set up; the tracking store has not been touched.
        CheckpointError: The folder holds a checkpoint that cannot be read or is of another run.
        TrackingError: The store is unreachable, or the seed has a result already.
    """
    config = from_resolved(plan.resolved)
    if config.trainer.num_threads:
        torch.set_num_threads(config.trainer.num_threads)
    plan.folder.mkdir(parents=True, exist_ok=True)
    path = plan.folder / CHECKPOINT
    refuse_other_run(path, config)
    try:
        loop = build(config, plan.folder)
        checkpoint = read_checkpoint(path) if plan.resume else None
        if checkpoint is not None:
            loop.resume(checkpoint)
        return _fit(loop, _open_tracker(plan, loop, checkpoint is not None), report)
    finally:
        config.task.close()


def build(config: Config, folder: Path) -> Loop:
    """The loop of a run, not yet tracked.

    Raises:
        BuildError: With the error of the task or policy.
    """
    try:
        loop = Loop(config, Points(MemoryTracker(), _ignore), folder)
        if config.trainer.strategy == SHARDED:
            loop.policy.sharded_parts()
        return loop
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        raise BuildError(f"cannot set up {config.task_name} for {config.algorithm_name}: {reason}") from error


def _fit(loop: Loop, tracker: Tracker, report: Report) -> Progress:
    points = Points(tracker, report, loop.samples)
    loop.tracker = points
    outcome, detail = _trained(loop, points)
    end = replace(points.progress(), samples=loop.samples, outcome=outcome, detail=detail)
    try:
        points.flush()
        if (loop.folder / TRACEBACK).exists():
            tracker.artifact(loop.folder / TRACEBACK)
        if outcome == "finished" and is_first_rank():
            tracker.artifact(loop.folder / CHECKPOINT, "checkpoints")
        tracker.finish(outcome, detail)
    except Exception as error:
        if not out_of_space(error):
            raise
        # The store keeps a run without a process, which the same command continues.
        end = replace(end, outcome="failed", detail=advice(loop.folder))
    report(end)
    return end


def _trained(loop: Loop, points: Points) -> tuple[Outcome, str]:
    """Train to the end; how it ended and why."""
    stop = Stop(loop.folder, points)
    (loop.folder / TRACEBACK).unlink(missing_ok=True)
    try:
        with stop.listening():
            if not loop.is_done:
                build_trainer(loop.config, loop.folder, [stop]).fit(loop)
    except DivergedError as error:
        return "diverged", str(error)
    except (InterruptedRun, KeyboardInterrupt):
        return "interrupted", f"stopped after {loop.samples} samples"
    except Exception as error:
        if out_of_space(error):
            return "failed", advice(loop.folder)
        (loop.folder / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error}"
    return "finished", ""


def build_trainer(config: Config, folder: Path, callbacks: Sequence[L.Callback] = ()) -> L.Trainer:
    """Lightning's trainer for one run: devices, strategy and precision, nothing of its own loggers or checkpoints."""
    _quiet()
    trainer = config.trainer
    return L.Trainer(
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        strategy=Sharded(trainer.devices) if trainer.strategy == SHARDED else trainer.strategy,
        precision=trainer.precision,  # type: ignore[arg-type]  # a plain string in the configuration
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )


def is_first_rank() -> bool:
    """Whether this process is the one of its run that records, before a process group is there to ask."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK"))


def _open_tracker(plan: SeedPlan, loop: Loop, resume: bool) -> Tracker:
    if not is_first_rank():
        return MemoryTracker()
    store = open_store(plan.tracking_uri, results=plan.results)
    identity = replace(plan.identity, note=loop.algorithm.note(loop.policy) or "")
    return start_seed(store, identity, seed=plan.seed, config=plan.resolved, resume=resume, tags=plan.tags)


def _ignore(_: Progress) -> None:
    return None


def _quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def main(arguments: list[str] | None = None) -> int:
    """Run the plan of a file; its progress file says how it ended."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    plan = SeedPlan.read(Path(path))
    quiet_libraries()
    begin = time.monotonic()

    def report(progress: Progress) -> None:
        if is_first_rank():
            replace(progress, wall_s=time.monotonic() - begin).write(plan.folder)

    try:
        end = train(plan, report)
    except Exception as error:
        if out_of_space(error):
            # For the log, to which the matrix points; there is no space for a progress file.
            print(advice(plan.folder), file=sys.stderr)
            return 1
        traceback.print_exc()
        report(Progress(outcome="failed", detail=str(error)))
        return 1
    assert end.outcome is not None
    return EXIT_CODES[end.outcome]


if __name__ == "__main__":
    sys.exit(main())
