import re
from importlib import metadata

import envpool
import gymnasium
import numpy as np
import pytest
import torch

from rlflow.config import resolve
from rlflow.testing import task_checks
from tasks.control import video
from tasks.control.engines import open_vector, spec_of
from tasks.control.envpool_engine import envpool_spec
from tasks.control.evaluation import play

# Two builds of MuJoCo part by rounding, which grows with the trajectory: 6e-14 after 20 steps, 2e-6 after 100.
CLOSE = 1e-6
# The ten tasks of FPO's table 1.
DM_CONTROL = [
    "BallInCupCatch-v1",
    "CartpoleBalance-v1",
    "CheetahRun-v1",
    "FingerSpin-v1",
    "FingerTurnEasy-v1",
    "FingerTurnHard-v1",
    "FishSwim-v1",
    "PointMassEasy-v1",
    "ReacherEasy-v1",
    "ReacherHard-v1",
]


def opened(env_id, starts):
    return open_vector(spec_of("envpool", env_id), starts, lambda start, episode: 1000 * start + episode)


def walk(vector, num_steps, seed=0):
    rng = np.random.default_rng(seed)
    shape = (len(vector), vector.spec.action_dim)
    return [vector.step(rng.uniform(-1, 1, shape).astype(np.float32)) for _ in range(num_steps)]


def test_the_half_cheetah_makes_gymnasiums_transitions():
    vector = opened("HalfCheetah-v5", [3])
    env = gymnasium.make("HalfCheetah-v5").unwrapped
    env.reset(seed=0)
    pool = envpool.make("HalfCheetah-v5", env_type="gymnasium", num_envs=1, seed=[3000])
    start = pool.reset()[0][0]
    # The observation is all but the horizontal position, which nothing depends on.
    env.set_state(np.concatenate([[0.0], start[:8]]), start[8:])
    rng = np.random.default_rng(0)
    for _ in range(40):
        action = rng.uniform(-1, 1, (1, 6)).astype(np.float32)
        found, (observation, reward, *_) = vector.step(action), env.step(action[0])
        assert np.allclose(found.next_observation[0], observation, rtol=CLOSE, atol=CLOSE)
        assert found.reward[0] == pytest.approx(reward, abs=CLOSE)
    assert set(vector.take_reward_terms()) == {"run", "ctrl"}


@pytest.mark.parametrize("env_id", DM_CONTROL)
def test_state_round_trip_continues_bit_for_bit(env_id):
    vector = opened(env_id, [0, 5])
    walk(vector, 15, seed=1)
    state = vector.state_dict()
    expected = walk(vector, 15, seed=2)
    other = opened(env_id, [8, 9])
    walk(other, 7, seed=3)
    other.load_state_dict(state)
    for a, b in zip(expected, walk(other, 15, seed=2), strict=True):
        assert np.array_equal(a.next_observation, b.next_observation)
        assert np.array_equal(a.reward, b.reward)
    assert np.array_equal(vector.observation, other.observation)


def test_rows_in_different_episodes_come_back_and_go_on_together():
    vector = opened("InvertedPendulum-v5", [1, 2, 2])
    while vector.episode.max() < 3:
        walk(vector, 1, seed=int(vector.elapsed.sum()))
    state = vector.state_dict()
    other = opened("InvertedPendulum-v5", [1, 2, 2])
    other.load_state_dict(state)
    for a, b in zip(walk(vector, 60), walk(other, 60), strict=True):
        assert np.array_equal(a.next_observation, b.next_observation)
        assert a.finished == b.finished
    assert np.array_equal(vector.episode, other.episode)
    assert np.array_equal(vector.observation, other.observation)


def test_termination_keeps_the_true_next_observation_and_no_step_is_a_reset():
    vector = opened("InvertedPendulum-v5", [1])
    while not (step := vector.step(np.full((1, 1), 3.0, dtype=np.float32))).terminated[0]:
        pass
    # The pendulum terminates where its angle (observation 1) passes .2 rad; a reset draws angles within .01.
    assert abs(step.next_observation[0, 1]) > 0.2
    first = vector.observation.copy()
    assert abs(first[0, 1]) < 0.2
    # EnvPool left alone would spend the next step on the reset, pay nothing and return the first observation again.
    step = vector.step(np.full((1, 1), 3.0, dtype=np.float32))
    assert step.reward[0] == 1.0
    assert not np.array_equal(step.next_observation, first)


@pytest.mark.parametrize("part", ["observation", "reward"])
def test_a_simulator_that_gives_no_number_ends_its_episode_without_a_transition(part):
    vector, undisturbed = (opened("HalfCheetah-v5", [3, 4]) for _ in range(2))
    walk(vector, 2)
    walk(undisturbed, 2)
    pool = vector._pool

    class Unstable:
        """The pool, whose first simulator has lost its state: EnvPool lets nobody set one."""

        reset, close, action_space = pool.reset, pool.close, pool.action_space

        def step(self, action):
            after = list(pool.step(action))
            place = ("observation", "reward").index(part)
            after[place] = after[place].copy()
            after[place][0] = np.nan
            return after

    vector._pool = Unstable()
    action = np.zeros((2, 6), dtype=np.float32)
    step, expected = vector.step(action), undisturbed.step(action)
    assert (step.broken.tolist(), step.reward[0], step.terminated[0], step.finished) == ([True, False], 0.0, False, [])
    assert np.array_equal(step.next_observation[1], expected.next_observation[1])
    assert (vector.episode.tolist(), vector.elapsed.tolist()) == ([1, 0], [0, 3])
    assert np.isfinite(vector.take_reward_terms()["run"]).all()
    vector._pool = pool
    assert not vector.step(action).broken.any()


def test_an_episode_of_dm_control_is_truncated_at_its_time_limit():
    vector = opened("PointMassEasy-v1", [0, 0])
    steps = walk(vector, 1001)
    ended = [t for t, step in enumerate(steps) if step.truncated.any()]
    assert ended == [999]
    assert not any(step.terminated.any() for step in steps)
    assert steps[999].truncated.all()
    assert vector.elapsed.tolist() == [1, 1]
    assert vector.episode.tolist() == [1, 1]


@pytest.mark.parametrize("check", task_checks(), ids=lambda check: check.__name__)
def test_a_task_of_dm_control_passes_the_public_conformance_checks(check):
    sizes = ["task.num_steps=8", "task.group_size=2", "task.eval_episodes=2", "task.video_every=100"]
    given = [*sizes, "update.epochs=1", "update.updates_per_rollout=2"]
    task = resolve("flow_grpo", "control/CheetahRun-v1", given).task
    assert task._spec.engine == "envpool"
    assert check(task) is None
    task.close()


def test_its_sample_is_a_plot(tmp_path):
    task = resolve("ppo", "control/ReacherEasy-v1").task
    torch.manual_seed(0)
    spec = spec_of("auto", "ReacherEasy-v1")
    episodes = play(spec, task.build_policy(frozenset()), "action", 1, torch.device("cpu"))
    ((name, writer),) = video.sample_files(spec, episodes).items()
    writer(tmp_path / name)
    assert name == "rollout.png"
    assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("CheetahRunn-v1", "unknown EnvPool environment 'CheetahRunn-v1'; did you mean CheetahRun-v1"),
        ("CartPole-v1", "expected a flat Box of continuous actions, found Discrete"),
        ("?", "see envpool.list_all_envs()"),
    ],
)
def test_what_it_does_not_serve_is_refused_with_a_way_out(env_id, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        spec_of("envpool", env_id)


@pytest.mark.parametrize("found", ["none", "0.8.4"])
def test_another_version_of_the_package_is_refused(monkeypatch, found):
    def version(name):
        assert name == "envpool"
        if found == "none":
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    envpool_spec.cache_clear()
    with pytest.raises(ValueError, match=rf"expected the package envpool 1\.2\.5, found {found}; pip install"):
        spec_of("envpool", "CheetahRun-v1")
