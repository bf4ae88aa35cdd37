"""Settings of a flow policy: grids, samplers, likelihoods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Sampler and likelihood of a flow policy.

    Attributes:
        train_steps: Denoising steps while training (denoising reduction). Too few: biased samples; many: slow.
        eval_steps: Denoising steps of evaluation.
        shift: Shift of the `linspace_shift` grid; 1 is linear.
        solver: ODE solver of training samples that leave no trajectory, `euler` or `heun`.
        eval_solver: Sampler of evaluation: ODE solver `euler` or `heun` (two velocities a step), or `sde`, stochastic
            steps of kind `sde` at `noise_level` all along the grid but for the last.
        sde: Kind of stochastic step: `flow_sde`, `cps` or `dance`.
        noise_level: a of the stochastic step. Too low: no exploration; too high: samples leave the data manifold.
        window: Number of consecutive stochastic, trained steps (0 = all but the last).
        window_start: First step of the window, or -1 for a random start per rollout.
        reduction: Reduction over dimensions of log-prob and CFM loss: `mean`, `sum`, `sqrt_d`.
        num_probes: CFM probes per decision.
        probe_loss: CFM loss parameterisation, `u`, `eps` or `x0` (see `cfm_loss`).
        kl: `latent`, (mean - ref mean)^2 / (2 std^2) with std including sqrt(-dt); or `velocity`, |v - v_ref|^2,
            both mean over dimensions. At CFM probes where no trajectory is stored, always `velocity`.
        eval_start: `noise`, fixed seeded noise; `mean`, the zero start.
        replay: `stepwise`, K forwards of the sampler's batch (bit-exact ratio 1); `folded`, one forward of K times
            the rows (faster for small networks).
    """

    train_steps: int = 10
    eval_steps: int = 20
    shift: float = 1.0
    solver: Literal["euler", "heun"] = "euler"
    eval_solver: Literal["euler", "heun", "sde"] = "euler"
    sde: Literal["flow_sde", "cps", "dance"] = "flow_sde"
    noise_level: float = 0.7
    window: int = 0
    window_start: int = 0
    reduction: Literal["mean", "sum", "sqrt_d"] = "mean"
    num_probes: int = 8
    probe_loss: Literal["u", "eps", "x0"] = "u"
    kl: Literal["latent", "velocity"] = "latent"
    eval_start: Literal["noise", "mean"] = "noise"
    replay: Literal["stepwise", "folded"] = "stepwise"

    def __post_init__(self) -> None:
        """Check the window against the grid."""
        if self.train_steps < 2 or self.eval_steps < 1 or self.num_probes < 1:
            raise ValueError(
                f"flow: expected train_steps >= 2, eval_steps >= 1, num_probes >= 1, found {self.train_steps}, "
                f"{self.eval_steps}, {self.num_probes}"
            )
        if self.noise_level < 0 or (self.sde == "cps" and self.noise_level > 1):
            raise ValueError(
                f"flow: expected noise_level >= 0, at most 1 for sde=cps, found {self.noise_level} for {self.sde}"
            )
        last = self.window_start + self.window
        if self.window < 0 or last > self.train_steps - 1:
            raise ValueError(
                f"flow: the window [{self.window_start}, {last}) must end before the last of {self.train_steps} "
                "training steps (it is almost deterministic); lower window or window_start"
            )

    @property
    def counts_iterations(self) -> bool:
        """Whether the window's place depends on the iteration."""
        return False

    def first_stochastic(self, iteration: int, draw: Callable[[int], int]) -> int:
        """First step of the window in this iteration; `draw(n)` gives an integer below n."""
        if self.window_start >= 0:
            return self.window_start
        return draw(self.train_steps - (self.window or self.train_steps - 1))


@dataclass(frozen=True, kw_only=True)
class ScheduledFlowConfig(FlowConfig):
    """A flow policy with named time grids and places of its window; apart, since each field names a cell anew.

    Attributes:
        grid: `linspace_shift`, evenly spaced and shifted by `shift`; `diffusers`, the pretrained pipeline's own
            sigmas for as many steps, with its dynamic shift, for which `shift` is not used.
        window_place: `fixed`, at `window_start`; `random`, anywhere before the last step; `sliding`, from the first
            step on towards the data, where it stays (after MixGRPO, arXiv 2507.21802).
        window_every: Iterations after which a sliding window moves. Too few: no place learns enough; too many: the
            budget ends before the late steps are trained.
        window_stride: Steps that it moves by.
        window_end: Steps before which a random or sliding window ends (0 = all but the last). Low-noise steps move
            the image little and their likelihoods round worst.
    """

    grid: Literal["linspace_shift", "diffusers"] = "diffusers"
    window_place: Literal["fixed", "random", "sliding"] = "fixed"
    window_every: int = 25
    window_stride: int = 1
    window_end: int = 0

    def __post_init__(self) -> None:
        """Check the window's place."""
        super().__post_init__()
        if min(self.window_every, self.window_stride) < 1:
            raise ValueError(
                f"flow: expected window_every >= 1 and window_stride >= 1, found {self.window_every} and "
                f"{self.window_stride}"
            )
        if self.window_place != "fixed" and (self.window == 0 or self.window_start != 0):
            raise ValueError(
                f"flow: a {self.window_place} window needs window >= 1 and window_start = 0, found {self.window} and "
                f"{self.window_start}"
            )
        if self.window_end and not self.window <= self.window_end < self.train_steps:
            raise ValueError(
                f"flow: expected window_end between window = {self.window} and train_steps - 1 = "
                f"{self.train_steps - 1}, found {self.window_end}"
            )

    @property
    def counts_iterations(self) -> bool:
        """Where the window slides."""
        return self.window_place == "sliding"

    def first_stochastic(self, iteration: int, draw: Callable[[int], int]) -> int:
        """First step of the window in this iteration, by `window_place`."""
        places = (self.window_end or self.train_steps - 1) - self.window + 1
        if self.window_place == "random":
            return draw(places)
        if self.window_place == "sliding":
            return min(iteration // self.window_every * self.window_stride, places - 1)
        return super().first_stochastic(iteration, draw)
