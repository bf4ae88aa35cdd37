"""The optimiser of a policy's roles and the step sizes of its schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlflow.policy import Policy
from rlflow.settings import Update


def make_optimiser(policy: Policy, update: Update) -> torch.optim.Optimizer:
    """AdamW with a group per role, so that heads have step sizes and gradient clips of their own."""
    rates = {
        "actor": update.lr,
        "critic": update.critic_lr or update.lr,
        "partition": update.partition_lr or update.lr,
    }
    groups = [
        {"params": params, "lr": rates[name], "initial_lr": rates[name], "name": name}
        for name, params in policy.parameter_groups().items()
    ]
    return FusedAdamW(groups, betas=update.betas, eps=update.eps, weight_decay=update.weight_decay)


class FusedAdamW(torch.optim.AdamW):
    """AdamW(fused=True) to the bit, whose lists of tensors are made once: small networks wait for Python, not kernels.

    It also moves the version counters of its parameters, by which `Rollout.memo` knows a change and which a fused step
    leaves alone.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(groups, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        self._lists: list[tuple[dict[str, Any], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]] = []

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        everyone = [p for group in self.param_groups for p in group["params"]]
        if not self._lists or any(p.grad is None for p in everyone):
            super().step()
            self._lists = self._gathered() if all(p.grad is not None for p in everyone) else []
        else:
            for lists in self._lists:
                _step_together(*lists)
        torch.autograd.graph.increment_version(everyone)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over moments and rates."""
        super().load_state_dict(state_dict)
        self._lists = []

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def _gathered(self) -> list[tuple[dict[str, Any], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]]:
        """Parameters, moments and step counts by group, device and type: one kernel takes one kind."""
        answer = []
        for group in self.param_groups:
            kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
            for p in group["params"]:
                kinds.setdefault((p.device, p.dtype), []).append(p)
            for params in kinds.values():
                state = [[self.state[p][name] for p in params] for name in ("exp_avg", "exp_avg_sq", "step")]
                answer.append((group, params, state[0], state[1], state[2]))
        return answer


def _step_together(
    group: dict[str, Any], params: list[Tensor], averages: list[Tensor], squares: list[Tensor], counts: list[Tensor]
) -> None:
    torch._foreach_add_(counts, 1)
    gradients = [p.grad for p in params if p.grad is not None]
    beta1, beta2 = group["betas"]
    torch._fused_adamw_(
        params, gradients, averages, squares, [], counts, lr=group["lr"], beta1=beta1, beta2=beta2,
        weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False, grad_scale=None,
        found_inf=None,
    )  # fmt: skip


@torch.no_grad()
def clip_gradients(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients of one group to a norm of at most `limit`; their norm before, which may not be finite.

    `nn.utils.clip_grad_norm_` to the bit where all gradients are of one kind, at half of its cost for small networks.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if len({(type(g), g.device, g.dtype) for g in gradients}) != 1 or isinstance(gradients[0], DTensor):
        whole: Tensor | DTensor = nn.utils.clip_grad_norm_(parameters, limit)
        return whole.full_tensor() if isinstance(whole, DTensor) else whole
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if limit < math.inf:
        torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def set_rates(optimiser: torch.optim.Optimizer, update: Update, collected: int, num_iterations: int) -> None:
    """Give every group the step size of the schedule after `collected` of the `num_iterations` rollouts of a budget."""
    progress = collected / num_iterations
    factor = min(1.0, (progress + 1 / num_iterations) / update.warmup_fraction) if update.warmup_fraction else 1.0
    if update.lr_schedule == "linear":
        factor *= 1.0 - progress * (1.0 - update.lr_final_fraction)
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * factor
