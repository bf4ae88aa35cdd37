"""The two policies of control tasks, on flat observations and box actions."""

from __future__ import annotations

from typing import Literal

from rlflow.policies.flow import FlowPolicy
from rlflow.policies.flow_config import FlowConfig
from rlflow.policies.gaussian import DiagonalGaussian, GaussianPolicy
from rlflow.policies.heads import ContextHead, RunningNorm, mlp, partition_mlp
from rlflow.policy import Policy
from tasks.control.networks import VelocityMLP, observation_of

PolicyKind = Literal["gaussian", "flow"]
ACTION_KEYS = {"gaussian": "action", "flow": "sample"}


def action_flow() -> FlowConfig:
    """Ten steps in training and evaluation, folded replay for a small network, evaluated from the mean start."""
    return FlowConfig(train_steps=10, eval_steps=10, reduction="sqrt_d", eval_start="mean", replay="folded")


def build_policy(
    kind: PolicyKind,
    requires: frozenset[str],
    *,
    observation_dim: int,
    action_dim: int,
    hidden: int,
    log_std: float,
    flow: FlowConfig,
    flow_hidden: int,
    flow_depth: int,
) -> Policy:
    """The policy with the heads that `requires` names, observations normalised by running statistics.

    Args:
        kind: `gaussian` or `flow`.
        requires: Capabilities.
        observation_dim: C.
        action_dim: A.
        hidden: Width of the Gaussian mean network and of the critic (two tanh layers each).
        log_std: Initial log standard deviation of the Gaussian.
        flow: Sampler and likelihood of the flow policy.
        flow_hidden: Width of the velocity network.
        flow_depth: Hidden SiLU layers of the velocity network.
    """
    critic = mlp([observation_dim, hidden, hidden, 1]) if "value" in requires else None
    partition = partition_mlp(observation_dim) if "partition" in requires else None
    normaliser = RunningNorm((observation_dim,))
    if kind == "gaussian":
        mean = mlp([observation_dim, hidden, hidden, action_dim], output_gain=0.01)
        return GaussianPolicy(
            DiagonalGaussian(mean, action_dim, log_std),
            requires=requires, critic=critic, partition=partition, normaliser=normaliser,
        )  # fmt: skip
    return FlowPolicy(
        VelocityMLP(observation_dim, action_dim, flow_hidden, flow_depth), (action_dim,), flow, requires=requires,
        critic=None if critic is None else ContextHead(observation_of, critic),
        partition=None if partition is None else ContextHead(observation_of, partition),
        normaliser=normaliser, reference="behaviour",
    )  # fmt: skip
