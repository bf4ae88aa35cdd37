"""A control policy as it acts in evaluation: raw observation to clipped action, the normaliser inside."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlflow.policies.flow_config import FlowConfig
from rlflow.policy import Policy
from rlflow.random import Noise, generator
from rlflow.task import Acting
from tasks.control.environments import Spec
from tasks.control.policies import ACTION_KEYS, PolicyKind


def acting_policy(policy: Policy, kind: PolicyKind, flow: FlowConfig, spec: Spec) -> Acting:
    """The policy of an environment; a flow that evaluation starts from noise takes that noise as an input.

    Raises:
        ValueError: Evaluation draws noise at every step.
    """
    inputs = {"observation": torch.zeros(2, spec.observation_dim)}
    if kind == "flow" and flow.eval_solver == "sde":
        raise ValueError("expected task.flow.eval_solver euler or heun, found sde, which draws noise at every step")
    if kind == "flow" and flow.eval_start == "noise":
        inputs["start"] = torch.zeros(2, spec.action_dim)
    module = ActingPolicy(policy, kind, spec.action_low, spec.action_high)
    return Acting(module=module, inputs=inputs, output="action")


class ActingPolicy(nn.Module):
    """`observation [n, C]` as the environment gives it, flattened, to `action [n, A]` as it takes it.

    Args:
        policy: With its normaliser; copied nowhere, so that it follows further training.
        kind: `gaussian`, whose mean acts, or `flow`, integrated from the start that evaluation has.
        low: Lower bounds of the action space, `[A]`.
        high: Upper bounds.
    """

    low: Tensor
    high: Tensor

    def __init__(self, policy: Policy, kind: PolicyKind, low: NDArray[Any], high: NDArray[Any]) -> None:
        super().__init__()
        self.policy = policy
        self._key = ACTION_KEYS[kind]
        self.register_buffer("low", torch.as_tensor(low, dtype=torch.float32))
        self.register_buffer("high", torch.as_tensor(high, dtype=torch.float32))

    def forward(self, observation: Tensor, start: Tensor | None = None) -> Tensor:
        """Act.

        Args:
            observation: `[n, C]`.
            start: `[n, A]` standard normals, for a flow policy that is evaluated from noise.
        """
        noise = Noise(generator=generator(0, "control", "acting"), device=observation.device)
        given = {} if start is None else {"initial": start}
        action: Tensor = self.policy.sample({"observation": observation}, noise, train=False, **given)[self._key]
        return action.float().clamp(self.low, self.high)
