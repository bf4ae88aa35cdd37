"""mujoco_warp on the CPU, through the same captured graph as on a CUDA device, beside the `batched` engine."""

import re
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from rlflow.config import ConfigError, resolve
from rlflow.random import Noise, generator
from rlflow.run import Points, build_trainer
from rlflow.testing import task_checks
from rlflow.tracker import MemoryTracker
from rlflow.trainer import Loop
from tasks.control import warp_engine
from tasks.control.engines import open_vector, spec_of
from tasks.control.evaluation import play
from tasks.control.warp_engine import packages, warp_spec

needs_warp = pytest.mark.skipif(
    find_spec("mujoco_warp") is None, reason="needs mujoco_warp: pip install 'rlflow[warp]'"
)
# Of float32 against MuJoCo's float64 after one step from the same state, relative to 1 + |value|.  Of 800 steps each:
# balancing 2e-7, Hopper 2e-6; the cheetah's contacts are stiff, 4e-4 in its fastest joint, 8e-5 in 99 of 100.
CLOSE = 1e-5
STIFF = 2e-3
QUICK = [
    "task.engine=warp",
    "task.num_steps=8",
    "task.group_size=2",
    "task.eval_episodes=2",
    "task.video=false",
    "update.epochs=1",
    "update.updates_per_rollout=2",
]


def seed_of(start, episode):
    return 1000 * start + episode


def opened(engine, env_id, starts):
    return open_vector(spec_of(engine, env_id), starts, seed_of)


def walk(vector, num_steps, seed=0):
    rng = np.random.default_rng(seed)
    shape = (len(vector), vector.spec.action_dim)
    return [vector.step(rng.uniform(-1, 1, shape).astype(np.float32)) for _ in range(num_steps)]


def placed(warp, batched):
    """Put the state of one engine's simulators into the other's."""
    for name, state in warp._state.items():
        values = np.stack([getattr(data, name) for data in batched._data])
        state.copy_(torch.from_numpy(values).reshape(state.shape))


def apart(found, expected):
    """Largest difference relative to 1 + |value|."""
    return float((abs(np.asarray(found) - expected) / (1 + abs(np.asarray(expected)))).max())


@needs_warp
@pytest.mark.parametrize(
    ("env_id", "tolerance"), [("InvertedPendulum-v5", CLOSE), ("Hopper-v5", CLOSE), ("HalfCheetah-v5", STIFF)]
)
def test_a_step_from_the_same_state_is_the_batched_engines(env_id, tolerance):
    warp, batched = (opened(engine, env_id, [3, 4, 5]) for engine in ("warp", "batched"))
    # Gymnasium draws both resets.
    assert np.array_equal(warp.observation.numpy(), batched.observation)
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(60):
        placed(warp, batched)
        action = rng.standard_normal((3, warp.spec.action_dim)).astype(np.float32)
        found, expected = warp.step(torch.from_numpy(action)), batched.step(action)
        assert apart(found.next_observation, expected.next_observation) < tolerance
        assert apart(found.reward, expected.reward) < CLOSE
        for flag in ("terminated", "truncated", "broken"):
            assert np.array_equal(getattr(found, flag).numpy(), getattr(expected, flag)), flag
        assert [length for _, length in found.finished] == [length for _, length in expected.finished]
        ended += len(found.finished)
    assert (ended > 0) == (env_id != "HalfCheetah-v5")
    terms, their_terms = warp.take_reward_terms(), batched.take_reward_terms()
    assert terms.keys() == their_terms.keys()
    for name, total in their_terms.items():
        assert apart(terms[name], total) < 60 * CLOSE, name


@needs_warp
def test_a_trajectory_without_contacts_stays_within_rounding():
    warp, batched = (opened(engine, "Hopper-v5", [3, 4]) for engine in ("warp", "batched"))
    for found, expected in zip(walk(warp, 10), walk(batched, 10), strict=True):
        assert apart(found.next_observation, expected.next_observation) < CLOSE
        assert apart(found.reward, expected.reward) < CLOSE


@needs_warp
def test_observations_rewards_and_flags_are_tensors_of_the_engines_device():
    vector = opened("warp", "InvertedPendulum-v5", [0, 1])
    step = vector.step(np.zeros((2, 1), dtype=np.float32))
    assert all(isinstance(x, torch.Tensor) and x.device == vector.device for x in step[:5])
    assert step.next_observation.dtype == torch.float32
    # The state is not copied: the tensors are mujoco_warp's own arrays.
    assert vector._state["qpos"].data_ptr() == vector._data.qpos.ptr


@needs_warp
def test_termination_keeps_the_true_next_observation_and_resets_in_the_same_step():
    vector = opened("warp", "InvertedPendulum-v5", [1])
    while not (step := vector.step(np.full((1, 1), 3.0, dtype=np.float32))).terminated[0]:
        pass
    # The pendulum terminates where its angle (observation 1) passes .2 rad; a reset draws angles within .01.
    assert abs(step.next_observation[0, 1]) > 0.2
    assert abs(vector.observation[0, 1]) < 0.2
    # The episode that follows begins where the other engines begin it.
    fresh = open_vector(spec_of("batched", "InvertedPendulum-v5"), [1], lambda start, _: seed_of(start, 1))
    assert np.array_equal(vector.observation.numpy(), fresh.observation)
    action = np.full((1, 1), 3.0, dtype=np.float32)
    assert apart(vector.step(action).next_observation, fresh.step(action).next_observation) < CLOSE


@needs_warp
@pytest.mark.parametrize("env_id", ["InvertedPendulum-v5", "HalfCheetah-v5"])
def test_state_round_trip_continues_bit_for_bit(env_id):
    vector = opened("warp", env_id, [0, 5])
    walk(vector, 20, seed=1)
    state = vector.state_dict()
    expected = walk(vector, 30, seed=2)
    other = opened("warp", env_id, [8, 9])
    walk(other, 7, seed=3)
    other.load_state_dict(state)
    for a, b in zip(expected, walk(other, 30, seed=2), strict=True):
        assert torch.equal(a.next_observation, b.next_observation)
        assert torch.equal(a.reward, b.reward)
        assert a.finished == b.finished
    assert torch.equal(vector.observation, other.observation)


@needs_warp
@pytest.mark.parametrize("value", [np.nan, 1e30])
def test_an_unstable_world_ends_its_episode_without_a_transition(value):
    vector, undisturbed = (opened("warp", "Hopper-v5", [3, 4]) for _ in range(2))
    walk(vector, 2)
    walk(undisturbed, 2)
    vector._state["qvel"][0, 1] = value
    action = np.zeros((2, 3), dtype=np.float32)
    step, expected = vector.step(action), undisturbed.step(action)
    assert (step.broken.tolist(), step.reward[0], step.terminated[0], step.finished) == ([True, False], 0.0, False, [])
    assert torch.equal(step.next_observation[1], expected.next_observation[1])
    assert (vector.episode.tolist(), vector.elapsed.tolist()) == ([1, 0], [0, 3])
    assert bool(torch.isfinite(vector.take_reward_terms()["forward"]).all())
    # The new episode is as good as any.
    fresh = open_vector(spec_of("warp", "Hopper-v5"), [3], lambda start, _: seed_of(start, 1))
    again, other = vector.step(action), fresh.step(action[:1])
    assert not again.broken.any()
    assert torch.equal(again.next_observation[0], other.next_observation[0])


@needs_warp
def test_a_world_whose_constraints_do_not_fit_is_broken_and_not_trained_on(monkeypatch):
    # A foot on the floor is two contacts of four rows each; the hopper begins just above it.
    monkeypatch.setattr(warp_engine, "NUM_CONSTRAINTS", 4)
    vector = opened("warp", "Hopper-v5", [3, 4])
    steps = [vector.step(np.zeros((2, 3), dtype=np.float32)) for _ in range(20)]
    broken = torch.stack([step.broken for step in steps], 1)
    assert broken.any(1).all()
    # The episode that follows begins in the air and is not marked for what came before it.
    assert not broken[:, 0].any()
    assert not (broken[:, 1:] & broken[:, :-1]).any()
    assert all(not step.finished and not step.terminated.any() for step in steps)
    # Counts of iterations that were not enough are no missing forces: MuJoCo goes on without a word, too.
    kind = packages()[1].OverflowType
    for flag, is_broken in ((kind.NEFC, True), (kind.NARROWPHASE, True), (kind.ITERATIONS, False)):
        vector._overflow[:] = torch.tensor([0, int(flag)])
        assert vector._unstable().tolist() == [False, is_broken]


@needs_warp
@pytest.mark.parametrize(("algorithm", "policy"), [("ppo", "gaussian"), ("flow_grpo", "flow")])
def test_an_iteration_trains_evaluates_and_resumes_on_its_rollouts(algorithm, policy):
    given = [*QUICK, f"task.policy={policy}", "trainer.budget=32", "trainer.num_evaluations=2"]
    config = resolve(algorithm, "control/InvertedPendulum-v5", given)
    tracker = MemoryTracker()
    with tempfile.TemporaryDirectory() as folder:
        points = Points(tracker, lambda _: None)
        loop = Loop(config, points, Path(folder))
        before = [p.detach().clone() for p in loop.policy.actor.parameters()]
        build_trainer(config, Path(folder)).fit(loop)
        points.flush()
    assert len(tracker.points["eval/score"]) == 2
    assert max(error for _, error in tracker.points["update/first_ratio_error"]) < CLOSE
    assert any(not torch.equal(a, b) for a, b in zip(before, loop.policy.actor.parameters(), strict=True))
    # A checkpoint's environments go on in another process.
    noise = [Noise(generator=generator(0)) for _ in range(2)]
    starts = torch.tensor([config.task.starts()[0]])
    other = resolve(algorithm, "control/InvertedPendulum-v5", given).task
    other.load_state_dict(config.task.state_dict())
    with torch.no_grad():
        found, expected = (t.rollout(loop.policy, starts, n) for t, n in zip((other, config.task), noise, strict=True))
    assert torch.equal(found.context["observation"], expected.context["observation"])
    assert torch.equal(found.reward, expected.reward)
    for task in (other, config.task):
        task.close()


@needs_warp
@pytest.mark.parametrize("check", task_checks(), ids=lambda check: check.__name__)
def test_a_task_passes_the_public_conformance_checks(check):
    task = resolve("ppo", "control/InvertedPendulum-v5", QUICK).task
    assert check(task) is None
    task.close()


@needs_warp
def test_an_evaluation_scores_what_the_batched_engine_scores():
    config = resolve("ppo", "control/InvertedPendulum-v5")
    torch.manual_seed(0)
    policy = config.task.build_policy(frozenset({"log_prob"}))
    found, expected = (
        play(spec_of(engine, "InvertedPendulum-v5"), policy, "action", 3, torch.device("cpu"))
        for engine in ("warp", "batched")
    )
    assert found.lengths.tolist() == expected.lengths.tolist()
    assert found.returns.tolist() == expected.returns.tolist()
    assert apart(np.stack(found.poses), np.stack(expected.poses)) < CLOSE


@needs_warp
@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("Humanoid-v5", "found 'Humanoid-v5': mjSOL_PGS is unsupported. Use task.engine=batched"),
        ("Hopper-v4", "task.engine=warp: expected one of AntEnv"),
        ("Hoper-v5", "unknown Gymnasium environment 'Hoper-v5'; did you mean Hopper-v5"),
        ("CartPole-v1", "expected a flat Box of continuous actions, found Discrete"),
    ],
)
def test_what_it_does_not_serve_is_refused_with_a_way_out(env_id, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        resolve("ppo", f"control/{env_id}", ["task.engine=warp"])


@pytest.mark.parametrize("package", ["mujoco-warp", "warp-lang"])
@pytest.mark.parametrize("found", ["none", "0.9.1"])
def test_missing_or_other_versions_of_the_packages_are_refused(monkeypatch, package, found):
    def version(name):
        if name != package:
            return warp_engine.VERSIONS[name]
        if found == "none":
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    packages.cache_clear()
    warp_spec.cache_clear()
    expected = (
        f"expected the package {package} {warp_engine.VERSIONS[package]}, found {found}; pip install 'rlflow[warp]'"
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        spec_of("warp", "Hopper-v5")
