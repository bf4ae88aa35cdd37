"""Velocity-field flow policy: one class for image latents and control actions.

A decision is a sample of a conditional rectified flow. With `log_prob` or `reference` asked for, training samples
leave an SDE trajectory behind (its transitions are the K refinement steps); with `elbo` asked for, CFM probes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rlflow.flow_matching import Step, Velocity, cfm_loss, diffuse, integrate, reduce_dims, sde_step, time_grid
from rlflow.policies.flow_config import FlowConfig
from rlflow.policies.heads import SEEN, RunningNorm, seen, with_seen
from rlflow.policy import Policy
from rlflow.random import Noise
from rlflow.rollout import Rollout


class FlowPolicy(Policy):
    """A velocity network `actor(x [n, *A], s [n], context) -> v [n, *A]` with heads on the context.

    Action record (training): `sample [B, T, *A]`; for SDE likelihoods `latents [B, T, K+1, *A]` and
    `times [B, T, K+1]`, and `log_prob [B, T, K]` where replay repeats the sampler's batches; for bounds
    `probe_eps [B, T, N, *A]` and `probe_time [B, T, N]`.
    """

    iteration: Tensor

    def __init__(
        self,
        actor: nn.Module,
        shape: tuple[int, ...],
        config: FlowConfig,
        *,
        requires: frozenset[str],
        critic: nn.Module | None = None,
        partition: nn.Module | None = None,
        normaliser: RunningNorm | None = None,
        reference: str = "initial",
        grid: Callable[[int], Tensor] | None = None,
    ) -> None:
        """Wrap networks.

        Args:
            actor: Velocity network.
            shape: A, the shape of one decision.
            config: Sampler and likelihood.
            requires: Capabilities that the algorithm asks for.
            critic: Context rows to `[n]` (see `ContextHead`).
            partition: Context rows to `[n]`, log Z.
            normaliser: Statistics of `context["observation"]`, updated at the end of each iteration.
            reference: See `Policy`.
            grid: Number of steps to times `[steps + 1]` from 1 to 0; None means `linspace_shift`.
        """
        super().__init__(requires, reference)
        if self.is_stochastic and config.noise_level == 0:
            raise ValueError(
                "flow.noise_level: expected above 0, found 0, where the algorithm asks for the likelihood of steps: "
                "deterministic ones have none; raise it, or take an algorithm that asks for bounds"
            )
        self.actor = actor
        self.shape = tuple(shape)
        self.config = config
        self.critic = critic
        self.partition = partition
        self.normaliser = normaliser
        self.grid = grid
        if config.counts_iterations:
            self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))
        self.freeze_reference()

    @property
    def is_stochastic(self) -> bool:
        """Whether training samples walk the SDE and leave a trajectory."""
        return "log_prob" in self.requires

    def sample(
        self, context: dict[str, Tensor], noise: Noise, *, train: bool = True, initial: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One decision per context row.

        Args:
            context: Leaves `[n, ...]`.
            noise: Row noise.
            train: Training grid and record; otherwise the evaluation grid, `sample` only.
            initial: `[n, *A]` start of the flow, e.g. shared within a group; drawn when None.

        Returns:
            The record without its T axis: leaves `[n, ...]`.
        """
        rows = self._rows(context)
        n = next(iter(rows.values())).shape[0]
        if initial is None:
            at_mean = not train and self.config.eval_start == "mean"
            initial = torch.zeros(n, *self.shape, device=noise.device) if at_mean else noise.normal((n, *self.shape))

        def velocity(x: Tensor, s: Tensor) -> Tensor:
            v: Tensor = self.actor(x, s, rows)
            return v

        if not train:
            return {"sample": self._evaluated(velocity, initial, noise)}
        grid = self._grid(self.config.train_steps, noise)
        if self.is_stochastic:
            record = self._walk(velocity, initial, grid, noise)
        else:
            record = {"sample": integrate(velocity, initial, grid, self.config.solver)}
        if "elbo" in self.requires:
            record["probe_eps"] = noise.normal((n, self.config.num_probes, *self.shape))
            record["probe_time"] = noise.uniform((n, self.config.num_probes))
        return record

    def log_prob(self, rollout: Rollout) -> Tensor:
        """`[B, T, K]` SDE transition densities of the stored trajectory, reduced over A by `config.reduction`."""
        return self._densities(rollout, rollout.memo(self, "trajectory", lambda: self._velocities(self.actor, rollout)))

    def ref_log_prob(self, rollout: Rollout) -> Tensor:
        """`[B, T, K]` under the reference network."""
        with self.referenced_actor() as actor:
            return self._densities(rollout, self._velocities(actor, rollout))

    def elbo(self, rollout: Rollout) -> Tensor:
        """`[B, T, N]` minus the CFM loss at each stored probe, reduced over A by `config.reduction`."""
        merge = {k: rollout.action[k].flatten(0, 1) for k in ("sample", "probe_eps", "probe_time")}
        loss = cfm_loss(
            lambda x, t: rollout.memo(self, "probes", lambda: self._at_probes(self.actor, rollout)),
            merge["sample"], merge["probe_eps"], merge["probe_time"],
            parameterisation=self.config.probe_loss, reduction=self.config.reduction,
        )  # fmt: skip
        return -loss.view(*rollout.mask.shape, -1)

    def kl(self, rollout: Rollout) -> Tensor:
        """`[B, T, K]` (or `[B, T, N]` at probes) distance from the reference, in the space that `config.kl` names."""
        if "latents" not in rollout.action:
            return self._probe_distance(rollout)
        v = rollout.memo(self, "trajectory", lambda: self._velocities(self.actor, rollout))
        with self.referenced_actor() as actor:
            v_ref = self._velocities(actor, rollout)
        if self.config.kl == "velocity":
            distance = (v - v_ref).square()
        else:
            step, ref = self._replayed(rollout, v), self._replayed(rollout, v_ref)
            distance = (step.mean - ref.mean).square() / (2 * step.std.square())
        return reduce_dims(distance, 1, "mean").view(*rollout.mask.shape, -1)

    def moments(self, rollout: Rollout) -> Tensor:
        """`[B, T, K, *A]` mean of every stored transition; its standard deviation depends on time alone."""
        v = rollout.memo(self, "trajectory", lambda: self._velocities(self.actor, rollout))
        return self._replayed(rollout, v).mean.view(*rollout.mask.shape, -1, *self.shape)

    def divergence(self, rollout: Rollout, old_moments: Tensor) -> Tensor:
        """`[B, T, K]` (mean - old mean)^2 / (2 std^2), reduced over A by `config.reduction`, std with sqrt(-dt)."""
        std = self.step_std(rollout).view(*rollout.mask.shape, -1, *[1] * len(self.shape))
        distance = (self.moments(rollout) - old_moments).square() / (2 * std.square())
        return reduce_dims(distance, 3, self.config.reduction)

    def step_std(self, rollout: Rollout) -> Tensor:
        """`[B, T, K]` standard deviation of every stored transition, with sqrt(-dt)."""
        times = rollout.action["times"]
        s, s_next = times[..., :-1].reshape(-1), times[..., 1:].reshape(-1)
        point = torch.zeros(s.shape[0], 1, device=s.device)
        a, kind = self.config.noise_level, self.config.sde
        return sde_step(point, point, s, s_next, a=a, kind=kind, x_next=point).std.view(*rollout.mask.shape, -1)

    def step_length(self, rollout: Rollout) -> Tensor:
        """`[B, T, K]` -dt of every stored transition."""
        times = rollout.action["times"]
        return times[..., :-1] - times[..., 1:]

    def value(self, rollout: Rollout) -> Tensor:
        """`[B, T]` critic on the context."""
        assert self.critic is not None, "built without 'value'"
        answer: Tensor = self.critic(self._rows(self._merged(rollout)))
        return answer.view(*rollout.mask.shape)

    def log_partition(self, rollout: Rollout) -> Tensor:
        """`[B, T]` log Z of each context."""
        assert self.partition is not None, "built without 'partition'"
        answer: Tensor = self.partition(self._rows(self._merged(rollout)))
        return answer.view(*rollout.mask.shape)

    def prepared(self, rows: Rollout) -> Rollout:
        """Observations normalised once."""
        return with_seen(self.normaliser, rows)

    def end_iteration(self, rollout: Rollout) -> None:
        """Move the behaviour reference and take the rollout's observations into the statistics."""
        super().end_iteration(rollout)
        if self.config.counts_iterations:
            self.iteration += 1
        if self.normaliser is not None:
            self.normaliser.update(rollout.context["observation"])

    def times(self, num_steps: int) -> Tensor:
        """Times `[num_steps + 1]` from 1 to 0 of a walk of so many steps, on the CPU or where the grid makes them."""
        return time_grid(num_steps, self.config.shift) if self.grid is None else self.grid(num_steps)

    def _grid(self, num_steps: int, noise: Noise) -> Tensor:
        return self.times(num_steps).to(noise.device)

    def _evaluated(self, velocity: Velocity, x: Tensor, noise: Noise) -> Tensor:
        c, grid = self.config, self._grid(self.config.eval_steps, noise)
        if c.eval_solver == "sde":
            return diffuse(velocity, x, grid, a=c.noise_level, kind=c.sde, draw=noise.normal)
        return integrate(velocity, x, grid, c.eval_solver)

    def _walk(self, velocity: Velocity, x: Tensor, grid: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Deterministic steps around a stochastic window; every stochastic transition is recorded."""
        c = self.config
        length = c.window or c.train_steps - 1
        start = c.first_stochastic(int(self.iteration) if c.counts_iterations else 0, noise.integer)
        latents, log_probs = [x], []
        for k in range(c.train_steps):
            s, s_next = (grid[i].expand(x.shape[0]) for i in (k, k + 1))
            inside = start <= k < start + length
            step = sde_step(
                x, velocity(x, s), s, s_next, a=c.noise_level if inside else 0.0, kind=c.sde,
                noise=noise.normal(x.shape) if inside else None, reduction=c.reduction,
            )  # fmt: skip
            x = step.x_next
            if inside:
                latents.append(x)
                log_probs.append(step.log_prob)
            elif k < start:
                latents = [x]
        times = grid[start : start + length + 1].expand(x.shape[0], -1)
        record = {"sample": x, "latents": torch.stack(latents, dim=1), "times": times.contiguous()}
        if c.replay == "stepwise":
            record["log_prob"] = torch.stack([p for p in log_probs if p is not None], dim=1)
        return record

    def _transitions(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, x_next `[B*T*K, *A]` and s, s_next `[B*T*K]`, in row-major order of (B, T, K)."""
        latents, times = rollout.action["latents"], rollout.action["times"]
        x, x_next = latents[:, :, :-1].flatten(0, 2), latents[:, :, 1:].flatten(0, 2)
        return x, x_next, times[..., :-1].reshape(-1), times[..., 1:].reshape(-1)

    def _densities(self, rollout: Rollout, v: Tensor) -> Tensor:
        """`[B, T, K]` log-density of every stored transition under velocities `v [B*T*K, *A]`."""
        log_prob = self._replayed(rollout, v).log_prob
        assert log_prob is not None
        return log_prob.view(*rollout.mask.shape, -1)

    def _replayed(self, rollout: Rollout, v: Tensor) -> Step:
        """Every stored transition under velocities `v [B*T*K, *A]`."""
        x, x_next, s, s_next = self._transitions(rollout)
        a, kind, reduction = self.config.noise_level, self.config.sde, self.config.reduction
        return sde_step(x, v, s, s_next, a=a, kind=kind, x_next=x_next, reduction=reduction)

    def _velocities(self, actor: nn.Module, rollout: Rollout) -> Tensor:
        """Velocity at every stored transition, `[B*T*K, *A]`."""
        latents, times = rollout.action["latents"].flatten(0, 1), rollout.action["times"].flatten(0, 1)
        num_steps = latents.shape[1] - 1
        if self.config.replay == "folded":
            v: Tensor = actor(
                latents[:, :-1].flatten(0, 1), times[:, :-1].reshape(-1), self._repeated(rollout, num_steps)
            )
            return v.float()
        rows = self._rows(self._merged(rollout))
        steps = [actor(latents[:, k], times[:, k], rows) for k in range(num_steps)]
        return torch.stack(steps, dim=1).flatten(0, 1).float()

    def _probe_distance(self, rollout: Rollout) -> Tensor:
        v = rollout.memo(self, "probes", lambda: self._at_probes(self.actor, rollout))
        with self.referenced_actor() as actor:
            v_ref = self._at_probes(actor, rollout)
        return reduce_dims((v - v_ref).square(), 1, "mean").view(*rollout.mask.shape, -1)

    def _at_probes(self, actor: nn.Module, rollout: Rollout) -> Tensor:
        """Velocity at every stored probe, `[B*T*N, *A]`."""
        clean, eps, time = (rollout.action[k].flatten(0, 1) for k in ("sample", "probe_eps", "probe_time"))
        t = time.view(*time.shape, *[1] * len(self.shape))
        x_t = (t * eps + (1 - t) * clean.unsqueeze(1)).flatten(0, 1)
        v: Tensor = actor(x_t, time.reshape(-1), self._repeated(rollout, time.shape[1]))
        return v.float()

    def _merged(self, rollout: Rollout) -> dict[str, Tensor]:
        if rollout.decisions_independent:
            return {k: v.flatten(0, 1) for k, v in rollout.context.items()}
        return rollout.context

    def _repeated(self, rollout: Rollout, times: int) -> dict[str, Tensor]:
        rows = self._rows(self._merged(rollout))
        return {k: v.repeat_interleave(times, dim=0) for k, v in rows.items()}

    def _rows(self, context: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.normaliser is None:
            return context
        rest = {name: leaf for name, leaf in context.items() if name != SEEN}
        return {**rest, "observation": seen(self.normaliser, context)}
