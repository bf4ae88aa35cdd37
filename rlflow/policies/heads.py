"""Heads and observation statistics that policies of every kind share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from rlflow.distributed import all_sum
from rlflow.rollout import Rollout

CLIP = 10.0
SEEN = "observation_seen"
"""Leaf of a prepared context: the observation as the networks see it."""


def mlp(
    sizes: Sequence[int],
    *,
    activation: type[nn.Module] = nn.Tanh,
    hidden_gain: float = 2**0.5,
    output_gain: float = 1.0,
) -> nn.Sequential:
    """Fully connected network with orthogonal weights and zero biases.

    Args:
        sizes: Input, hidden and output widths.
        activation: Between layers.
        hidden_gain: sqrt(2) for hidden layers (Huang et al. 2022, "The 37 implementation details of PPO").
        output_gain: .01 for a policy's mean, 1 for a critic.
    """
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        linear = nn.Linear(fan_in, fan_out)
        nn.init.orthogonal_(linear.weight, output_gain if last else hidden_gain)
        nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, activation()]
    return nn.Sequential(*layers)


def partition_mlp(width: int, hidden: int = 128, dropout: float = 0.0) -> nn.Sequential:
    """FlowRL's log Z: (Linear-GELU-LayerNorm-Dropout) x 2, then Linear to 1 that starts at 0 (arXiv 2509.15207)."""
    final = nn.Linear(hidden, 1)
    nn.init.zeros_(final.weight)
    nn.init.zeros_(final.bias)
    blocks: list[nn.Module] = []
    for fan_in in (width, hidden):
        blocks += [nn.Linear(fan_in, hidden), nn.GELU(), nn.LayerNorm(hidden), nn.Dropout(dropout)]
    return nn.Sequential(*blocks, final)


class ContextHead(nn.Module):
    """A scalar of the context alone: features of the context, then an MLP to 1."""

    def __init__(self, features: Callable[[dict[str, Tensor]], Tensor], net: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.net = net

    def forward(self, context: dict[str, Tensor]) -> Tensor:
        """Context rows, leaves `[n, ...]`, to `[n]`."""
        answer: Tensor = self.net(self.features(context))
        return answer.squeeze(-1)


class RunningNorm(nn.Module):
    """Mean and variance over everything seen, in float64, equal to numpy's; saved inside the checkpoint.

    Statistics accumulate (Chan et al. 1979): overwriting the variance instead lets normalised inputs grow by sqrt(k).
    """

    count: Tensor
    mean: Tensor
    square: Tensor
    _std: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(*shape, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(*shape, dtype=torch.float64))
        # Not saved: it follows from the others, and a sampler reads it at every environment step.
        self.register_buffer("_std", torch.empty(*shape, dtype=torch.float64), persistent=False)
        self._derive()
        self.register_load_state_dict_post_hook(_derive_again)  # type: ignore[no-untyped-call]

    @property
    def variance(self) -> Tensor:
        """Population variance; 1 before the first update."""
        return torch.where(self.count > 0, self.square / self.count.clamp_min(1), torch.ones_like(self.square))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised and clipped to +-10, float32."""
        return ((x.double() - self.mean) / self._std).clamp(-CLIP, CLIP).float()

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add `x [..., *shape]` of this rank to the statistics of all ranks."""
        rows = x.double().reshape(-1, *self.mean.shape)
        count = all_sum(torch.tensor(float(rows.shape[0]), dtype=torch.float64, device=rows.device))
        if count == 0:
            return
        mean = all_sum(rows.sum(0)) / count
        square = all_sum((rows - mean).square().sum(0))
        total = self.count + count
        delta = mean - self.mean
        self.square += square + delta.square() * self.count * count / total
        self.mean += delta * count / total
        self.count.copy_(total)
        self._derive()

    @torch.no_grad()
    def _derive(self) -> None:
        self._std.copy_((self.variance + 1e-8).sqrt())


def _derive_again(module: RunningNorm, _: object) -> None:
    module._derive()


def seen(normaliser: RunningNorm | None, context: dict[str, Tensor]) -> Tensor:
    """The observation of a context, normalised here unless `with_seen` has done it."""
    if SEEN in context:
        return context[SEEN]
    return context["observation"] if normaliser is None else normaliser(context["observation"])


def with_seen(normaliser: RunningNorm | None, rows: Rollout) -> Rollout:
    """Rows whose observations are normalised already; statistics do not change within an iteration."""
    if normaliser is None:
        return rows
    return rows.replace(context={**rows.context, SEEN: normaliser(rows.context["observation"])})
