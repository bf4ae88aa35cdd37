"""Blocks of decisions: where traces end, and what an unstable simulator leaves of them."""

import numpy as np
import pytest
import torch

from rlflow.advantage import gae
from rlflow.policies.gaussian import GaussianPolicy
from rlflow.random import Noise, generator
from tasks.control import evaluation
from tasks.control.collect import Block, collect
from tasks.control.engines import spec_of
from tasks.control.evaluation import play
from tasks.control.gymnasium_mujoco import GymnasiumMujoco
from tasks.control.vector import Step

EXACT = 1e-6


def step_of(t, *, terminated=(), truncated=(), broken=()):
    """Five rows; observation after step t is t + 1."""

    def flags(rows):
        return np.isin(np.arange(5), rows)

    after = np.full((5, 1), t + 1.0, dtype=np.float32)
    return Step(after, np.ones(5), flags(terminated), flags(truncated), flags(broken), [])


def filled(steps):
    return Block([np.full((5, 1), float(t), dtype=np.float32) for t in range(len(steps))], steps)


def test_a_broken_step_is_cut_out_of_its_trace():
    block = filled(
        [
            step_of(0, broken=[1], terminated=[3]),
            step_of(1, broken=[0, 3]),
            step_of(2, broken=[2]),
        ]
    )
    broken = [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert block.broken.int().tolist() == broken
    # Row 0 ends before its broken step 1, row 2 before 2; row 1 has nothing before 0; row 3 had ended at 0 anyway.
    assert block.boundary().int().tolist() == [[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]]
    assert block.terminated.int().tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0]]
    # Open boundaries in row-major order: (0, 0) before step 1, (0, 2), (1, 2), (2, 1) before step 2, (3, 2), (4, 2).
    assert block.boundary_observation()[:, 0, 0].tolist() == [1.0, 3.0, 3.0, 2.0, 3.0, 3.0]


def test_the_advantage_before_a_broken_step_looks_no_further_than_its_observation():
    block = filled([step_of(0), step_of(1, broken=[0]), step_of(2)])
    value = torch.zeros(5, 3)
    value[0] = torch.tensor([0.5, 4.0, 7.0])
    # V of the observation before the broken step is 4: 1 + .5 * 4 - .5.
    following = torch.tensor([[4.0, 0.0, 0.0]]).expand(5, 3)
    flags = block.terminated, block.boundary()
    advantage = gae(block.reward, value, following, *flags, gamma=0.5, lam=1.0)
    assert advantage[0, 0].item() == pytest.approx(2.5, abs=EXACT)


@pytest.fixture
def task():
    task = GymnasiumMujoco(
        name="control/Hopper-v5", env_id="Hopper-v5", group_size=2, num_steps=6, eval_episodes=2, video=False
    )
    yield task
    task.close()


def test_a_rollout_masks_and_counts_broken_steps(task):
    torch.manual_seed(0)
    policy = task.build_policy(frozenset({"log_prob", "value"}))
    assert isinstance(policy, GaussianPolicy)
    noise = Noise(generator=generator(0))
    starts = torch.tensor([task.starts()[0]])
    assert bool(task.rollout(policy, starts, noise).mask.all())
    task._vector._data[1].qpos[2] = np.inf
    rollout = collect(task._vector, policy, "action", 6, 2, noise)
    assert (~rollout.mask).nonzero().tolist() == [[1, 0]]
    assert rollout.metrics["broken_episodes"] == 1.0
    assert bool(torch.isfinite(rollout.reward).all())
    assert all(bool(torch.isfinite(x).all()) for x in rollout.context.values())


def test_an_episode_of_an_evaluation_that_breaks_ends_there_and_is_counted(task, monkeypatch):
    opened = evaluation.open_vector

    def brittle(*arguments):
        vector = opened(*arguments)
        advance, calls = vector._advance, iter(range(100))

        def spoilt(action):
            if next(calls) == 3:
                vector._data[0].qvel[0] = np.nan
            return advance(action)

        vector._advance = spoilt
        return vector

    policy = task.build_policy(frozenset({"log_prob"}))
    whole = play(spec_of("auto", "Hopper-v5"), policy, "action", 2, torch.device("cpu"))
    monkeypatch.setattr(evaluation, "open_vector", brittle)
    found = play(spec_of("auto", "Hopper-v5"), policy, "action", 2, torch.device("cpu"))
    assert (found.broken.tolist(), found.lengths[0], found.terminated[0]) == ([True, False], 4, False)
    assert found.returns[1] == whole.returns[1]
    assert found.metrics()["broken_fraction"] == pytest.approx(0.5, abs=EXACT)
    assert [item["broken"] for item in found.items()] == [True, False]
