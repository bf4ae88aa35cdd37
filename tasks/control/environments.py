"""Which Gymnasium ids this family serves: MuJoCo environments with flat observations and box actions."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import cache

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box

from rlflow.registry import did_you_mean

log = logging.getLogger(__name__)


@cache
def _warn_once(message: str) -> None:
    log.warning("MuJoCo: %s", message.strip())


# MuJoCo prints warnings past Python, one for every model compiled, and appends them to a file in the working folder.
mujoco.set_mju_user_warning(_warn_once)


@cache
def mujoco_ids() -> tuple[str, ...]:
    """The newest version of every MuJoCo environment that Gymnasium itself registers."""
    newest: dict[str, int] = {}
    for name, spec in gymnasium.registry.items():
        stem, _, version = name.rpartition("-v")
        if str(spec.entry_point).startswith("gymnasium.envs.mujoco") and re.fullmatch(r"\d+", version):
            newest[stem] = max(newest.get(stem, 0), int(version))
    return tuple(sorted(f"{stem}-v{version}" for stem, version in newest.items()))


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a policy has to know about an environment.

    Attributes:
        env_id: Gymnasium's or EnvPool's id.
        engine: What steps it: `batched`, `gymnasium`, `envpool` or `warp`.
        observation_dim: C.
        action_low: `[A]` float32; actions are clipped to the box before the step, as costs are computed on them.
        action_high: `[A]` float32.
        max_episode_steps: Time limit in environment steps.
    """

    env_id: str
    engine: str
    observation_dim: int
    action_low: np.ndarray
    action_high: np.ndarray
    max_episode_steps: int

    @property
    def action_dim(self) -> int:
        """A."""
        return int(self.action_low.shape[0])


def make(env_id: str) -> MujocoEnv:
    """The bare simulator of `env_id`, without Gymnasium's per-step wrappers.

    The wrappers only count steps and check types; `tasks.control.vector` counts steps itself.
    """
    env = gymnasium.make(env_id).unwrapped
    assert isinstance(env, MujocoEnv)
    return env


@cache
def gymnasium_spec(env_id: str) -> Spec:
    """Check an id of Gymnasium and describe it.

    Raises:
        ValueError: Unknown id, no simulator, not MuJoCo, discrete actions, observations that are not flat; each says
            what was expected and what to use instead.
    """
    try:
        env = gymnasium.make(env_id)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ValueError(f"environment {env_id!r} lacks a dependency: {error}") from error
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"unknown Gymnasium environment {env_id!r}{did_you_mean(env_id, mujoco_ids())}") from error
    try:
        return _described(env_id, env)
    finally:
        env.close()


def _described(env_id: str, env: gymnasium.Env) -> Spec:
    action, observation = env.action_space, env.observation_space
    known = f"use one of {', '.join(mujoco_ids())}"
    if not isinstance(action, Box) or action.shape is None or len(action.shape) != 1:
        raise ValueError(f"environment {env_id!r}: expected a flat Box of continuous actions, found {action}; {known}")
    if not isinstance(observation, Box) or observation.shape is None or len(observation.shape) != 1:
        raise ValueError(f"environment {env_id!r}: expected flat Box observations, found {observation}; {known}")
    if not isinstance(env.unwrapped, MujocoEnv):
        kind = type(env.unwrapped).__name__
        raise ValueError(f"environment {env_id!r}: expected a MuJoCo environment, found {kind}; {known}")
    limit = env.spec.max_episode_steps if env.spec is not None else None
    if limit is None or (env.spec is not None and env.spec.additional_wrappers):
        raise ValueError(
            f"environment {env_id!r}: expected a time limit and no wrappers of its own in its registration, found "
            f"max_episode_steps={limit}; register it with max_episode_steps=1000 and fold wrappers into the class"
        )
    return Spec(
        env_id=env_id,
        engine="gymnasium",
        observation_dim=observation.shape[0],
        action_low=action.low.astype(np.float32),
        action_high=action.high.astype(np.float32),
        max_episode_steps=limit,
    )
