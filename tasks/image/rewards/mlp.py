"""The five linear layers, without any non-linearity, that the aesthetic predictor and ImageReward end with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# Places of the linear layers in the released sequence; the others are dropout, which does nothing here.
_PLACES = (0, 2, 4, 6, 7)


def linear_head(state: Mapping[str, Tensor], source: str) -> nn.Module:
    """The head of a released file: `layers.0 ... layers.7`, or a single linear layer `weight`, `bias`.

    Raises:
        ValueError: Other names.
    """
    names = [f"layers.{place}." for place in _PLACES] if "layers.0.weight" in state else [""]
    wanted = {f"{name}{kind}" for name in names for kind in ("weight", "bias")}
    if wanted != set(state):
        raise ValueError(
            f"{source}: expected the tensors layers.N.weight and layers.N.bias of N = {_PLACES}, or weight and bias "
            f"alone, found {sorted(state)[:12]}"
        )
    layers = []
    for name in names:
        weight = state[f"{name}weight"].float()
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(state[f"{name}bias"].float())
        layers.append(layer)
    return nn.Sequential(*layers).requires_grad_(False).eval()
