r"""Rectified flow: time grids, ODE and SDE steps with log-probs, conditional-flow-matching probes; pure functions.

Convention: $x_s = (1-s) x_0 + s \epsilon$, velocity $v = \epsilon - x_0$, s runs from 1 (noise) to 0 (data), so
$dt = s_{next} - s < 0$. All of it in float32: bf16 latents move log-probs by 7e-2 on late steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""`(x [n, *A], s [n]) -> v [n, *A]`."""

SDE_KINDS = ("flow_sde", "cps", "dance")
REDUCTIONS = ("mean", "sum", "sqrt_d")
SOLVERS = ("euler", "heun")


class Step(NamedTuple):
    """One transition: the next state, its mean, its standard deviation and log-density (None where deterministic)."""

    x_next: Tensor
    mean: Tensor
    std: Tensor
    log_prob: Tensor | None


def time_grid(num_steps: int, shift: float = 1.0) -> Tensor:
    """`linspace_shift` grid `[num_steps + 1]` from 1 to 0: s -> shift*s / (1 + (shift-1)*s); shift 1 is linear.

    Raises:
        ValueError: If `num_steps` < 1 or `shift` <= 0.
    """
    if num_steps < 1 or shift <= 0:
        raise ValueError(f"time_grid: expected num_steps >= 1 and shift > 0, found {num_steps} and {shift}")
    s = torch.linspace(1.0, 0.0, num_steps + 1)
    return shift * s / (1.0 + (shift - 1.0) * s)


def reduce_dims(x: Tensor, num_lead: int, reduction: str) -> Tensor:
    """Reduce the event dimensions after the first `num_lead` by `mean`, `sum` or `sqrt_d` (sum / sqrt(D)).

    A clip range means nothing without the reduction: the log-ratio grows with D under `sum`, with sqrt(D) of noise
    under `sqrt_d`, and shrinks under `mean`.
    """
    flat = x.flatten(num_lead) if x.ndim > num_lead else x.unsqueeze(-1)
    if reduction == "mean":
        return flat.mean(-1)
    if reduction == "sum":
        return flat.sum(-1)
    if reduction == "sqrt_d":
        return flat.sum(-1) / math.sqrt(flat.shape[-1])
    raise ValueError(f"reduction: expected one of {REDUCTIONS}, found {reduction!r}")


def sde_step(
    x: Tensor,
    v: Tensor,
    s: Tensor,
    s_next: Tensor,
    *,
    a: float,
    kind: str = "flow_sde",
    x_next: Tensor | None = None,
    noise: Tensor | None = None,
    reduction: str = "mean",
) -> Step:
    r"""One step of the ODE-to-SDE sampler, for sampling (`noise`) and for replay (`x_next`) alike.

    `flow_sde` (arXiv 2505.05470, eq. 9): $\sigma_s = a\sqrt{s/(1-s')}$ with s' = s_next where s = 1, else s;
    mean $= x(1 + \sigma^2 dt/(2s)) + v(1 + \sigma^2(1-s)/(2s))dt$, std $= \sigma\sqrt{-dt}$. `dance`
    (arXiv 2505.07818): the same with constant $\sigma = a$. `cps` (coefficients-preserving sampling, arXiv 2509.05952):
    std $= s_{next}\sin(a\pi/2)$, mean $= (1-s_{next})\hat x_0 + \sqrt{s_{next}^2 - std^2}\,\hat\epsilon$.
    `flow_sde` and `dance` keep the ODE's marginals as the grid gets finer; `cps` keeps them on any grid where the data
    is a point, but narrows spread data. `a = 0` is exactly Euler and has no density.

    Args:
        x: `[n, *A]`.
        v: `[n, *A]` velocity at (x, s).
        s: `[n]` current time in (0, 1].
        s_next: `[n]` next time, below s.
        a: Noise level.
        kind: One of `SDE_KINDS`.
        x_next: `[n, *A]` stored next state whose density is wanted.
        noise: `[n, *A]` standard normal, to draw the next state.
        reduction: How the log-density is reduced over A (see `reduce_dims`).

    Returns:
        `Step` with std broadcastable to x and log_prob `[n]`.

    Raises:
        ValueError: Unknown kind; neither or both of `noise` and `x_next` where the step is stochastic.
    """
    x, v = x.float(), v.float()
    lead = [-1] + [1] * (x.ndim - 1)
    s, s_next = s.float().view(lead), s_next.float().view(lead)
    dt = s_next - s
    if a == 0.0:
        mean = x + v * dt
        return Step(mean if x_next is None else x_next, mean, torch.zeros_like(dt), None)
    mean, std = _moments(x, v, s, s_next, a, kind)
    if (x_next is None) == (noise is None):
        raise ValueError("sde_step: a stochastic step needs exactly one of noise (to sample) and x_next (to replay)")
    if x_next is None:
        assert noise is not None
        x_next = mean + std * noise.float()
    density = -((x_next.float() - mean) ** 2) / (2 * std**2) - torch.log(std) - 0.5 * math.log(2 * math.pi)
    return Step(x_next, mean, std, reduce_dims(density, 1, reduction))


def _moments(x: Tensor, v: Tensor, s: Tensor, s_next: Tensor, a: float, kind: str) -> tuple[Tensor, Tensor]:
    dt = s_next - s
    if kind == "cps":
        std = s_next * math.sin(a * math.pi / 2)
        x0, eps = x - s * v, x + (1 - s) * v
        return x0 * (1 - s_next) + eps * (s_next**2 - std**2).clamp_min(0).sqrt(), std
    if kind == "flow_sde":
        sigma = a * torch.sqrt(s / (1 - torch.where(s >= 1.0, s_next, s)))
    elif kind == "dance":
        sigma = torch.full_like(s, a)
    else:
        raise ValueError(f"sde kind: expected one of {SDE_KINDS}, found {kind!r}")
    mean = x * (1 + sigma**2 / (2 * s) * dt) + v * (1 + sigma**2 * (1 - s) / (2 * s)) * dt
    return mean, sigma * torch.sqrt(-dt)


def integrate(velocity: Velocity, x: Tensor, grid: Tensor, solver: str = "euler") -> Tensor:
    """Solve the ODE along `grid [S + 1]` from noise `x [n, *A]`; `heun` spends two velocities a step but the last.

    Raises:
        ValueError: Unknown solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver: expected one of {SOLVERS}, found {solver!r}")
    x = x.float()
    steps = list(pairwise(grid.tolist()))
    for index, (s, s_next) in enumerate(steps, start=1):
        v = velocity(x, torch.full((x.shape[0],), s, device=x.device)).float()
        trial = x + v * (s_next - s)
        if solver == "heun" and index < len(steps):
            v_next = velocity(trial, torch.full((x.shape[0],), s_next, device=x.device)).float()
            trial = x + 0.5 * (v + v_next) * (s_next - s)
        x = trial
    return x


def diffuse(
    velocity: Velocity, x: Tensor, grid: Tensor, *, a: float, kind: str, draw: Callable[[torch.Size], Tensor]
) -> Tensor:
    """Follow the SDE along `grid [S + 1]` from noise `x [n, *A]`; the last step is deterministic (see `sde_step`).

    Args:
        velocity: Called once a step.
        x: Start.
        grid: Times from 1 to 0.
        a: Noise level.
        kind: One of `SDE_KINDS`.
        draw: Standard normals of a shape.
    """
    x = x.float()
    for s, s_next in pairwise(grid):
        rows, last = (x.shape[0],), bool(s_next == 0)
        v = velocity(x, s.expand(rows))
        noise = None if last or a == 0 else draw(x.shape)
        x = sde_step(x, v, s.expand(rows), s_next.expand(rows), a=0.0 if last else a, kind=kind, noise=noise).x_next
    return x


def cfm_loss(
    velocity: Velocity, x0: Tensor, eps: Tensor, time: Tensor, *, parameterisation: str = "u", reduction: str = "mean"
) -> Tensor:
    r"""Conditional-flow-matching loss at stored probes (FPO, arXiv 2507.21053, eq. 11).

    $x_t = t\epsilon + (1-t)x_0$, $u = \epsilon - x_0$, loss $|v(x_t, t) - u|^2$; the `eps` parameterisation measures
    the predicted noise instead, which is exactly $(1-t)^2$ times the `u` loss, and `x0` the predicted clean sample,
    $t^2$ times the `u` loss: it weighs the noisy times, where a sample's composition is decided, while a network that
    predicts x0 blows the `u` loss up by $1/t^2$ near t = 0.

    Args:
        velocity: Called once on all probes, `(x [n*N, *A], t [n*N])`.
        x0: `[n, *A]` clean sample.
        eps: `[n, N, *A]` stored noise.
        time: `[n, N]` stored times in [0, 1].
        parameterisation: `u`, `eps` or `x0`.
        reduction: Over A (see `reduce_dims`).

    Returns:
        `[n, N]`, differentiable.
    """
    n, num_probes = time.shape
    t = time.view(n, num_probes, *[1] * (x0.ndim - 1))
    clean = x0.float().unsqueeze(1)
    x_t = t * eps + (1 - t) * clean
    v = velocity(x_t.flatten(0, 1), time.reshape(-1)).float().view_as(eps)
    loss = reduce_dims((v - (eps - clean)) ** 2, 2, reduction)
    if parameterisation == "eps":
        return loss * (1 - time) ** 2
    if parameterisation == "x0":
        return loss * time**2
    if parameterisation != "u":
        raise ValueError(f"parameterisation: expected u, eps or x0, found {parameterisation!r}")
    return loss
