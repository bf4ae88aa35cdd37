"""Muon: momentum whose update is orthogonalised, for matrices and convolution kernels of the pretraining runs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_MOMENTUM = 0.95
# Coefficients of the quintic Newton-Schulz iteration (Jordan, "Muon", 2024): five rounds bring all singular values
# to about 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


def orthogonalise(update: Tensor) -> Tensor:
    """Nearest (semi-)orthogonal matrix to `update`, flattened to [rows, rest], in its own shape."""
    a, b, c = _QUINTIC
    x = update.flatten(1)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    flat: Tensor = x if wide else x.T
    return flat.reshape(update.shape)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled by sqrt(max(1, rows / columns)).

    Args:
        params: tensors of two or more dimensions.
        lr: learning rate; about ten times that of AdamW.
    """

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        """Refuse vectors: they have no orthogonalisation."""
        chosen = list(params)
        flat = [tuple(p.shape) for p in chosen if p.ndim < 2]
        if flat:
            raise ValueError(f"Muon takes matrices and kernels, found shapes {flat}; give those to AdamW")
        super().__init__(chosen, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                momentum = state.setdefault("momentum", torch.zeros_like(param))
                momentum.lerp_(param.grad, 1 - _MOMENTUM)
                update = orthogonalise(param.grad.lerp(momentum, _MOMENTUM))
                rows, columns = param.shape[0], param[0].numel()
                param.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)
