"""Gymnasium's MuJoCo tasks of things that walk, run and swim."""

from __future__ import annotations

from gymnasium.envs.mujoco import MujocoEnv

from tasks.control.batches import Batch, concatenate, finite, flat, inside, like, never, squares
from tasks.control.dynamics import Dynamics, Outcome, State

VELOCITY_LIMIT = 10.0


class HalfCheetah(Dynamics):
    """Forward speed minus control; never terminates."""

    def observation(self, s: State) -> Batch:
        """Joint positions and velocities without x."""
        return concatenate(self._visible(s, 1), s["qvel"])

    def outcome(self, before: Batch, s: State, action: Batch) -> Outcome:
        """See `Dynamics`."""
        forward = self.env._forward_reward_weight * self._speed(before, s)
        control = -self.env._ctrl_cost_weight * squares(action)
        terms = {"forward": forward, "ctrl": control}
        return Outcome(reward=forward + control, terms=terms, terminated=never(forward))


class Swimmer(HalfCheetah):
    """Half-cheetah's reward on x; x and y are hidden."""

    def observation(self, s: State) -> Batch:
        """Joint positions and velocities without x and y."""
        return concatenate(self._visible(s, 2), s["qvel"])


class Walker2d(Dynamics):
    """Forward speed, a bonus while upright, minus control; ends when it falls."""

    def observation(self, s: State) -> Batch:
        """Positions without x, velocities clipped."""
        position = self._visible(s, 1)
        return concatenate(position, s["qvel"].clip(-VELOCITY_LIMIT, VELOCITY_LIMIT))

    def outcome(self, before: Batch, s: State, action: Batch) -> Outcome:
        """See `Dynamics`."""
        healthy = self._healthy(s)
        forward = self.env._forward_reward_weight * self._speed(before, s)
        control = -self.env._ctrl_cost_weight * squares(action)
        survive = healthy * self.env._healthy_reward
        return Outcome(
            reward=forward + survive + control,
            terms={"forward": forward, "ctrl": control, "survive": survive},
            terminated=~healthy & bool(self.env._terminate_when_unhealthy),
        )

    def _healthy(self, s: State) -> Batch:
        z, angle = s["qpos"][:, 1], s["qpos"][:, 2]
        return inside(z, self.env._healthy_z_range) & inside(angle, self.env._healthy_angle_range)


class Hopper(Walker2d):
    """Walker's rules with limits on the whole state."""

    def _healthy(self, s: State) -> Batch:
        state = concatenate(s["qpos"], s["qvel"])[:, 2:]
        return super()._healthy(s) & inside(state, self.env._healthy_state_range).all(1)


class Ant(Dynamics):
    """Speed of the torso, a bonus while healthy, minus control and contact."""

    fields = ("xpos", "cfrc_ext")

    def __init__(self, env: MujocoEnv) -> None:
        super().__init__(env)
        self._body = env.model.body(self.env._main_body).id

    def position(self, s: State) -> Batch:
        """X and y of the main body."""
        return s["xpos"][:, self._body, :2]

    def observation(self, s: State) -> Batch:
        """Positions without x and y, velocities, clipped contact forces."""
        parts = [self._visible(s, 2), s["qvel"]]
        if self.env._include_cfrc_ext_in_observation:
            parts.append(flat(self._contact(s)[:, 1:]))
        return concatenate(*parts)

    def outcome(self, before: Batch, s: State, action: Batch) -> Outcome:
        """See `Dynamics`."""
        low, high = self.env._healthy_z_range
        z = s["qpos"][:, 2]
        state = concatenate(s["qpos"], s["qvel"])
        healthy = finite(state).all(1) & (z >= low) & (z <= high)
        forward = self._speed(before, s)[:, 0] * self.env._forward_reward_weight
        survive = healthy * self.env._healthy_reward
        control = -self.env._ctrl_cost_weight * squares(action)
        contact = -self.env._contact_cost_weight * squares(flat(self._contact(s)))
        return Outcome(
            reward=forward + survive + control + contact,
            terms={"forward": forward, "ctrl": control, "contact": contact, "survive": survive},
            terminated=~healthy & bool(self.env._terminate_when_unhealthy),
        )

    def _contact(self, s: State) -> Batch:
        return s["cfrc_ext"].clip(*self.env._contact_force_range)


class Humanoid(Dynamics):
    """Speed of the centre of mass, a bonus while upright, minus control and impact."""

    fields = ("xipos", "cinert", "cvel", "qfrc_actuator", "cfrc_ext", "ctrl")

    def position(self, s: State) -> Batch:
        """X and y of the centre of mass."""
        mass = like(self.env.model.body_mass, s["xipos"])
        return (s["xipos"] * mass[None, :, None]).sum(1)[:, :2] / mass.sum()

    def observation(self, s: State) -> Batch:
        """Positions without x and y, velocities, inertias, velocities of the bodies, actuator and contact forces."""
        env = self.env
        parts = [self._visible(s, 2), s["qvel"]]
        parts += [flat(s["cinert"][:, 1:])] if env._include_cinert_in_observation else []
        parts += [flat(s["cvel"][:, 1:])] if env._include_cvel_in_observation else []
        parts += [s["qfrc_actuator"][:, 6:]] if env._include_qfrc_actuator_in_observation else []
        parts += [flat(s["cfrc_ext"][:, 1:])] if env._include_cfrc_ext_in_observation else []
        return concatenate(*parts)

    def outcome(self, before: Batch, s: State, action: Batch) -> Outcome:
        """See `Dynamics`."""
        healthy = inside(s["qpos"][:, 2], self.env._healthy_z_range)
        forward = self.env._forward_reward_weight * self._speed(before, s)[:, 0]
        survive = healthy * self.env._healthy_reward
        control = -self.env._ctrl_cost_weight * squares(s["ctrl"])
        impact = self.env._contact_cost_weight * squares(flat(s["cfrc_ext"]))
        contact = -impact.clip(*self.env._contact_cost_range)
        return Outcome(
            reward=forward + survive + control + contact,
            terms={"survive": survive, "forward": forward, "ctrl": control, "contact": contact},
            terminated=~healthy & bool(self.env._terminate_when_unhealthy),
        )


class HumanoidStandup(Humanoid):
    """Height per time step minus control and impact; never terminates."""

    def position(self, s: State) -> Batch:
        """Height of the torso; the reward measures no velocity."""
        return s["qpos"][:, 2]

    def outcome(self, before: Batch, s: State, action: Batch) -> Outcome:
        """See `Dynamics`."""
        height = self.position(s) / self.env.model.opt.timestep
        control = -self.env._ctrl_cost_weight * squares(s["ctrl"])
        impact = -(self.env._impact_cost_weight * squares(flat(s["cfrc_ext"]))).clip(*self.env._impact_cost_range)
        terms = {"linup": height, "quadctrl": control, "impact": impact}
        return Outcome(reward=height + control + impact + 1, terms=terms, terminated=never(height))
