"""Gymnasium's MuJoCo tasks of balancing, reaching and pushing."""

from __future__ import annotations

from tasks.control.batches import Batch, concatenate, cos, finite, length, never, sin, squares
from tasks.control.dynamics import Dynamics, Outcome, State

VELOCITY_LIMIT = 10.0


class InvertedPendulum(Dynamics):
    """One for every step upright."""

    def observation(self, s: State) -> Batch:
        """Positions and velocities."""
        return concatenate(s["qpos"], s["qvel"])

    def outcome(self, before: Batch, s: State, action: Batch) -> Outcome:
        """See `Dynamics`."""
        terminated = ~finite(self.observation(s)).all(1) | (abs(s["qpos"][:, 1]) > 0.2)
        survive = 1.0 * ~terminated
        return Outcome(reward=survive, terms={"survive": survive}, terminated=terminated)


class InvertedDoublePendulum(Dynamics):
    """A bonus while the tip is high, minus distance and speed."""

    fields = ("site_xpos", "qfrc_constraint")

    def observation(self, s: State) -> Batch:
        """Cart, sines and cosines of the joints, clipped velocities, constraint force on the cart."""
        angles, limit = s["qpos"][:, 1:], VELOCITY_LIMIT
        force = s["qfrc_constraint"].clip(-limit, limit)[:, :1]
        return concatenate(s["qpos"][:, :1], sin(angles), cos(angles), s["qvel"].clip(-limit, limit), force)

    def outcome(self, before: Batch, s: State, action: Batch) -> Outcome:
        """See `Dynamics`."""
        x, y = s["site_xpos"][:, 0, 0], s["site_xpos"][:, 0, 2]
        terminated = y <= 1
        survive = self.env._healthy_reward * ~terminated
        distance = 0.01 * x**2 + (y - 2) ** 2
        speed = 0.001 * s["qvel"][:, 1] ** 2 + 0.005 * s["qvel"][:, 2] ** 2
        return Outcome(reward=survive - distance - speed, terms={"survive": survive}, terminated=terminated)


class Reacher(Dynamics):
    """Minus the distance of the fingertip to the target and control; never terminates."""

    fields = ("xpos",)

    def observation(self, s: State) -> Batch:
        """Angles of the two joints, target, velocities, fingertip relative to the target."""
        angles = s["qpos"][:, :2]
        gap = self._between(s, "fingertip", "target")[:, :2]
        return concatenate(cos(angles), sin(angles), s["qpos"][:, 2:], s["qvel"][:, :2], gap)

    def outcome(self, before: Batch, s: State, action: Batch) -> Outcome:
        """See `Dynamics`."""
        distance = -length(self._between(s, "fingertip", "target")) * self.env._reward_dist_weight
        control = -squares(action) * self.env._reward_control_weight
        terms = {"dist": distance, "ctrl": control}
        return Outcome(reward=distance + control, terms=terms, terminated=never(distance))

    def _body(self, s: State, name: str) -> Batch:
        return s["xpos"][:, self.env.model.body(name).id]

    def _between(self, s: State, first: str, second: str) -> Batch:
        return self._body(s, first) - self._body(s, second)


class Pusher(Reacher):
    """Minus the distances of arm and goal to the object, and control; never terminates."""

    def observation(self, s: State) -> Batch:
        """Arm's positions and velocities, places of tip, object and goal."""
        places = [self._body(s, name) for name in ("tips_arm", "object", "goal")]
        return concatenate(s["qpos"][:, :7], s["qvel"][:, :7], *places)

    def outcome(self, before: Batch, s: State, action: Batch) -> Outcome:
        """See `Dynamics`."""
        near = -length(self._between(s, "object", "tips_arm")) * self.env._reward_near_weight
        distance = -length(self._between(s, "object", "goal")) * self.env._reward_dist_weight
        control = -squares(action) * self.env._reward_control_weight
        terms = {"dist": distance, "ctrl": control, "near": near}
        return Outcome(reward=distance + control + near, terms=terms, terminated=never(near))
