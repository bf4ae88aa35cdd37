"""Refuses a run that cannot work, before any work: pairings without the capability, sizes that do not divide."""

from __future__ import annotations

from rlflow.policy import check_capabilities
from rlflow.registry import find
from rlflow.settings import SHARDED, Config, ConfigError


def check_config(config: Config) -> None:
    """Refuse what cannot run: sizes that do not divide, missing groups, missing capabilities.

    Raises:
        ConfigError: Sizes.
        MissingCapabilityError: The pairing.
    """
    task, update, trainer = config.task, config.update, config.trainer
    policy_class = find("policy", task.policies[task.policy_kind]).load()
    check_capabilities(policy_class, config.algorithm.requires, config.algorithm_name, config.task_name)
    if config.algorithm.needs_groups and task.group_size < 2:
        raise ConfigError(
            f"task.group_size: {config.algorithm_name} compares rollouts within a group and needs at least 2, "
            f"found {task.group_size}; set task.group_size=8"
        )
    _check_refill(config)
    sizes = {
        "task.groups_per_rollout": task.groups_per_rollout,
        "task.group_size": task.group_size,
        "update.epochs": update.epochs,
        "update.updates_per_rollout": update.updates_per_rollout,
        "trainer.budget": trainer.budget,
        "trainer.devices": trainer.devices,
    }
    for key, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{key}: expected at least 1, found {value}")
    if trainer.num_evaluations < 2:
        raise ConfigError(
            f"trainer.num_evaluations: expected at least 2 (start and end), found {trainer.num_evaluations}"
        )
    if min(update.micro_batch, update.micro_batch_decisions) < 0 or (
        update.micro_batch and update.micro_batch_decisions
    ):
        raise ConfigError(
            f"update.micro_batch = {update.micro_batch} and update.micro_batch_decisions = "
            f"{update.micro_batch_decisions}: expected one of them to be 0 and none below; rows or decisions, not both"
        )
    if trainer.strategy == SHARDED and update.ema > 0:
        raise ConfigError(
            f"trainer.strategy={SHARDED}: expected update.ema=0, found {update.ema}; the average is not sharded"
        )
    _divides("task.groups_per_rollout", task.groups_per_rollout, "trainer.devices", trainer.devices)
    _divides("update.updates_per_rollout", update.updates_per_rollout, "update.epochs", update.epochs)
    minibatches = update.updates_per_rollout // update.epochs
    rows = minibatches * config.algorithm.row_decisions
    _divides("rows per rollout", task.rows_per_rollout, "updates per epoch times the row window", rows)
    if trainer.precision.startswith("16"):
        raise ConfigError(
            f"trainer.precision: {trainer.precision} needs a loss scaler, which moves log-probs; use bf16-mixed"
        )


def _check_refill(config: Config) -> None:
    refill, name = config.update.refill, config.algorithm_name
    if refill < 0:
        raise ConfigError(f"update.refill: expected 0 (off) or a number of rollouts, found {refill}")
    if refill and not config.algorithm.drops_silent_groups:
        raise ConfigError(
            f"update.refill: expected 0, found {refill}: with this configuration {name} also learns from groups whose "
            "members return the same, and replacing them would bias it; set update.refill=0, or an algorithm (or "
            "baseline) that compares whole rollouts within their group"
        )


def _divides(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value % divisor:
        near = [d for d in range(1, value + 1) if value % d == 0]
        fit = min(near, key=lambda d: abs(d - divisor))
        raise ConfigError(
            f"{name} = {value} is not divisible by {divisor_name} = {divisor}; "
            f"the nearest {divisor_name} that fits is {fit}"
        )
