"""The optimiser of a policy's roles and the step sizes of its schedule."""

from __future__ import annotations

from typing import Any

import torch

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
    optimiser = torch.optim.AdamW(
        groups, betas=update.betas, eps=update.eps, weight_decay=update.weight_decay, fused=True
    )
    optimiser.register_step_post_hook(_count_change)
    return optimiser


def _count_change(optimiser: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A fused step leaves the version counters of its parameters alone, by which `Rollout.memo` knows a change."""
    for group in optimiser.param_groups:
        torch.autograd.graph.increment_version(group["params"])


def set_rates(optimiser: torch.optim.Optimizer, update: Update, collected: int, num_iterations: int) -> None:
    """Give every group the step size of the schedule after `collected` of the `num_iterations` rollouts of a budget."""
    progress = collected / num_iterations
    factor = min(1.0, (progress + 1 / num_iterations) / update.warmup_fraction) if update.warmup_fraction else 1.0
    if update.lr_schedule == "linear":
        factor *= 1.0 - progress * (1.0 - update.lr_final_fraction)
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * factor
