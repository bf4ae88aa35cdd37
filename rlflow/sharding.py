"""Weights sharded over processes (FSDP2 through Lightning), with plain whole tensors in checkpoints.

A checkpoint is that of one process: it goes on under any strategy and any number of processes, and can be exported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from rlflow.policy import Policy

# Whatever asks the network of a policy: the weights beside its layers are gathered before.
FORWARDS = (
    "sample", "log_prob", "ref_log_prob", "elbo", "kl", "entropy", "value", "log_partition", "completion_log_prob",
)  # fmt: skip


class Sharded(ModelParallelStrategy):
    """FSDP2 over all processes, without tensor parallelism.

    Lightning gathers the optimiser's state by a step with zero gradients where there is none yet, which would move
    Adam's bias correction; here states are gathered as they are.
    """

    def __init__(self, devices: int) -> None:
        super().__init__(data_parallel_size=devices, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights on the CPU, on every rank."""
        assert self.model is not None
        return cast(dict[str, Any], whole(self.model.state_dict()))

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Whole moments on the CPU, on every rank."""
        return cast(dict[str, Any], whole(optimizer.state_dict()))


def shard(policy: Policy, mesh: DeviceMesh) -> None:
    """Leave each rank its part of every weight of `policy`, in place; nothing where that has been done.

    The layers are gathered one at a time; all other weights together, whenever the policy is asked. Sampling holds the
    whole actor: its ranks take different numbers of steps, in which none may wait for another.

    Raises:
        ValueError: The policy has no layers to shard, or needs whole weights.
    """
    if is_sharded(policy):
        return
    for part in policy.sharded_parts():
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    fully_shard(policy, mesh=mesh)
    _sample_gathered(policy)
    for name in FORWARDS:
        if hasattr(policy, name):
            setattr(policy, name, _without_views(getattr(policy, name)))
            register_fsdp_forward_method(policy, name)


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` has been here."""
    return isinstance(module, FSDPModule)


def whole(values: Any) -> Any:
    """Nested `values` with every tensor whole, detached and on the CPU; all ranks have to ask."""
    if isinstance(values, DTensor):
        return values.full_tensor().detach().cpu()
    if isinstance(values, Tensor):
        return values.detach().cpu()
    if isinstance(values, dict):
        return type(values)((name, whole(value)) for name, value in values.items())
    return [whole(value) for value in values] if isinstance(values, list) else values


def placed(state: dict[str, Any], optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole `state` of an optimiser, with each moment sharded as the parameter that it belongs to."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    moments = {
        index: {name: _like(value, parameters[index]) for name, value in kept.items()}
        for index, kept in state["state"].items()
    }
    return {**state, "state": moments}


def _like(value: Any, parameter: Tensor) -> Any:
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


def _without_views(method: Callable[..., Any]) -> Callable[..., Any]:
    """FSDP gathers weights for the backward pass by a hook on what is returned; in place, a view would lose it."""

    @functools.wraps(method)
    def copied(*arguments: Any, **named: Any) -> Any:
        answer = method(*arguments, **named)
        return answer.clone() if isinstance(answer, Tensor) and answer._is_view() else answer

    return copied


def _sample_gathered(policy: Any) -> None:
    sample = policy.sample

    @functools.wraps(sample)
    def gathered(*arguments: Any, **named: Any) -> Any:
        with _gathered(policy):
            return sample(*arguments, **named)

    policy.sample = gathered


@contextmanager
def _gathered(policy: Any) -> Iterator[None]:
    """The actor's whole weights on every rank while the block runs."""
    parts = [module for module in policy.actor.modules() if is_sharded(module)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()
        # What lies beside the layers was gathered for the call itself, and without a backward pass would stay.
        policy.reshard()
