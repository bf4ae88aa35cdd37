"""What a run has spent: seconds by stage, samples, tokens, optimiser steps, peak memory; cumulative."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rlflow import distributed
from rlflow.rollout import Rollout

TRAINING_STAGES = ("rollout_s", "reward_s", "targets_s", "update_s")


@dataclass(kw_only=True)
class Cost:
    """Cumulative cost of a run over all ranks; seconds are those of one rank, which waits for the others.

    Attributes:
        seconds: Wall-clock seconds by stage; `eval_s` is measured but is not training time.
        decisions: Unmasked decisions: tokens, environment steps or whole samples.
        env_steps: Environment steps.
        optimizer_steps: Optimiser steps.
        policy_forwards: Rows through the policy's network, in rollout, targets and update (not evaluation); a
            token, a denoising step or an action each. The frozen reference is not counted. Ranks have equal shares, so
            that one counts for all.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    decisions: int = 0
    env_steps: int = 0
    optimizer_steps: int = 0
    policy_forwards: int = 0

    def watch(self, trunk: nn.Module) -> None:
        """Count the rows of every forward pass of `trunk` from now on."""

        def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], __: object) -> None:
            rows: Tensor = args[0] if args else kwargs["input_ids"]
            self.policy_forwards += rows.shape[0] * distributed.world_size()

        trunk.register_forward_hook(add, with_kwargs=True)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the duration of a block to `stage`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin

    def count(self, rollout: Rollout, unit: str) -> None:
        """Add the scored rollout of every rank."""
        decisions = int(distributed.all_sum(torch.tensor([rollout.num_decisions], device=rollout.device)))
        self.decisions += decisions
        if unit == "env_steps":
            self.env_steps += decisions

    def clock(self) -> dict[str, float]:
        """`cost/wall_s` alone, training time without evaluation: the time axis of every point between evaluations."""
        return {"cost/wall_s": sum(self.seconds.get(stage, 0.0) for stage in TRAINING_STAGES)}

    def metrics(self, device: torch.device) -> dict[str, float]:
        """Flat `cost/...` metrics."""
        wall = self.clock()["cost/wall_s"]
        on_gpu = device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(device) if on_gpu else _resident_bytes()
        return {
            "cost/wall_s": wall,
            "cost/gpu_s": wall if on_gpu else 0.0,
            **{f"cost/{stage}": value for stage, value in self.seconds.items()},
            "cost/tokens": float(self.decisions),
            "cost/env_steps": float(self.env_steps),
            "cost/optimizer_steps": float(self.optimizer_steps),
            "cost/policy_forwards": float(self.policy_forwards),
            "cost/peak_gb": peak / 1e9,
        }

    def state_dict(self) -> dict[str, object]:
        """Plain data for the checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue counting."""
        for name, value in state.items():
            setattr(self, name, value)


def _resident_bytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
