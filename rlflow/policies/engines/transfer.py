"""Weights on their way to another process: files in shared memory, gone once they were read."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from rlflow.policies.engines.engine import EngineError
from rlflow.policies.engines.weights import LORA

SHARED_MEMORY = Path("/dev/shm")
PREFIX = "rlflow-weights-"


@contextmanager
def weights_file(weights: Iterator[tuple[str, Tensor]], folder: str = "") -> Iterator[Path]:
    """A safetensors file of `weights` while the block runs, in `folder`, or in shared memory where there is room."""
    tensors = {name: weight.contiguous().cpu() for name, weight in weights}
    with _place(sum(tensor.nbytes for tensor in tensors.values()), folder) as place:
        path = place / "weights.safetensors"
        save_file(tensors, path)
        yield path


@contextmanager
def adapter_folder(actor: nn.Module, max_rank: int, folder: str = "") -> Iterator[Path]:
    """The LoRA of a peft model as peft saves it, while the block runs; places as for `weights_file`.

    Raises:
        EngineError: There is no LoRA, or one of a higher rank.
    """
    configs: dict[str, Any] = getattr(actor, "peft_config", {})
    rank = max((config.r for config in configs.values()), default=0)
    if not 0 < rank <= max_rank:
        raise EngineError(
            f"task.vllm.lora_rank: expected a LoRA of rank 1-{max_rank}, found "
            f"{f'rank {rank}' if rank else 'a model that is trained in full'}; take task.trained.lora_rank, or 0"
        )
    # By their names, not by `state_dict`, which would shard gathered weights again.
    own = {name: weight.detach().cpu() for name, weight in actor.named_parameters() if LORA in name}
    with _place(sum(weight.nbytes for weight in own.values()), folder) as place:
        actor.save_pretrained(place, state_dict=own)  # type: ignore[operator]
        yield place


@contextmanager
def _place(size: int, folder: str) -> Iterator[Path]:
    in_memory = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > size + 2**20
    place = folder or (SHARED_MEMORY if in_memory else None)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=place) as name:
        yield Path(name)
