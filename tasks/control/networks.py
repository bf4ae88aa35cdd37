"""Networks of the control policies; observations reach them normalised."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rlflow.policies.heads import mlp

TIME_FEATURES = 8


class VelocityMLP(nn.Module):
    """Velocity of an action: an MLP on the observation, the noisy action and 8 features of the flow time.

    The last layer starts near zero, so that the untrained policy leaves its noise almost as it is: N(0, I).
    """

    frequencies: Tensor

    def __init__(self, observation_dim: int, action_dim: int, hidden: int, depth: int) -> None:
        super().__init__()
        sizes = [observation_dim + action_dim + TIME_FEATURES, *[hidden] * depth, action_dim]
        self.net = mlp(sizes, activation=nn.SiLU, output_gain=0.01)
        octaves = torch.arange(TIME_FEATURES // 2, dtype=torch.float32)
        self.register_buffer("frequencies", math.pi * 2.0**octaves / 2.0, persistent=False)

    def forward(self, x: Tensor, s: Tensor, context: dict[str, Tensor]) -> Tensor:
        """`x [n, A]`, `s [n]` and `context["observation"] [n, C]` to the velocity `[n, A]`."""
        phase = s.unsqueeze(-1) * self.frequencies
        answer: Tensor = self.net(torch.cat([context["observation"], x, phase.sin(), phase.cos()], dim=-1))
        return answer


def observation_of(context: dict[str, Tensor]) -> Tensor:
    """The feature that heads of a flow policy read."""
    return context["observation"]
