"""Checkpoints on disk: read without executing code, and refused where they are broken or of another run."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from rlflow.config import from_resolved
from rlflow.identity import difference, params
from rlflow.settings import Config

VERSION = 2
MAX_DIFFERENCES = 8


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the file has not been touched."""


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """The checkpoint at `path` on the CPU, or None where there is no file.

    Raises:
        CheckpointError: The file is cut short, damaged, or was not written by this version of rlflow.
    """
    if not path.exists():
        return None
    import torch

    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"expected a checkpoint of rlflow at {path}, found a file that cannot be read ({reason}); "
            "restore it, or remove it to start anew"
        ) from error
    state = checkpoint.get("rlflow") if isinstance(checkpoint, dict) else None
    version = state.get("version") if isinstance(state, dict) else None
    if version != VERSION:
        raise CheckpointError(
            f"expected a checkpoint of rlflow (version {VERSION}) at {path}, found "
            f"{'one without rlflow state' if version is None else f'version {version}'}; remove it to start anew"
        )
    return checkpoint


def refuse_other_run(path: Path, config: Config) -> None:
    """Refuse to continue, or to write over, the checkpoint of another cell or seed at `path`.

    Raises:
        CheckpointError: It cannot be read, or names the settings that differ.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint is None:
        return
    missing = sorted({"config", "task_revision"} - checkpoint["rlflow"].keys())
    if missing:
        raise CheckpointError(
            f"expected a whole checkpoint of rlflow at {path}, found one without {missing}; remove it to start anew"
        )
    kept = from_resolved(checkpoint["rlflow"]["config"])
    lines = difference(params(config), params(kept))
    if kept.trainer.seed != config.trainer.seed:
        lines.append(f"trainer.seed: planned {config.trainer.seed}, recorded {kept.trainer.seed}")
    recorded = checkpoint["rlflow"]["task_revision"]
    if recorded != config.task.revision:
        lines.append(f"task: planned version {config.task.revision}, recorded {recorded}")
    if not lines:
        return
    more = f"\n  ... and {len(lines) - MAX_DIFFERENCES} more" if len(lines) > MAX_DIFFERENCES else ""
    raise CheckpointError(
        f"expected the checkpoint at {path} to be of this run, found another configuration:\n  "
        + "\n  ".join(lines[:MAX_DIFFERENCES])
        + f"{more}\nchoose another folder, or remove the file to start anew"
    )
