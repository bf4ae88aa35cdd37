from functools import partial
from importlib.util import find_spec

import gymnasium
import numpy as np
import pytest
import torch

from tasks.control.batched import BatchedVector, batched_serves
from tasks.control.batches import copy
from tasks.control.engines import open_vector, spec_of
from tasks.control.environments import mujoco_ids
from tasks.control.vector import GymnasiumVector

CLOSE = 1e-9
# Squares of actions stay in float32, whose sums torch takes in another order.
ACTIONS = 1e-6
needs_warp = pytest.mark.skipif(
    find_spec("mujoco_warp") is None, reason="needs mujoco_warp: pip install 'rlflow[warp]'"
)


def opened(engine, env_id, starts, seed_of):
    return open_vector(spec_of(engine, env_id), starts, seed_of)


@pytest.fixture(params=["gymnasium", "batched"])
def Engine(request):
    return partial(opened, request.param)


@pytest.fixture(params=["gymnasium", "batched", "envpool", pytest.param("warp", marks=needs_warp)])
def AnyEngine(request):
    return partial(opened, request.param)


def same_seed(start, episode):
    return 1000 * start + episode


def play(vector, num_steps, seed=0):
    rng = np.random.default_rng(seed)
    shape = (len(vector), vector.spec.action_dim)
    return [vector.step(rng.standard_normal(shape).astype(np.float32)) for _ in range(num_steps)]


def test_steps_equal_gymnasiums_own_wrapped_environment(Engine):
    vector = Engine("Hopper-v5", [7], same_seed)
    env = gymnasium.make("Hopper-v5")
    expected, _ = env.reset(seed=same_seed(7, 0))
    assert np.array_equal(vector.observation[0], expected.astype(np.float32))
    rng = np.random.default_rng(0)
    for _ in range(10):
        action = rng.standard_normal((1, 3)).astype(np.float32)
        step = vector.step(action)
        observation, reward, terminated, _, _ = env.step(np.clip(action[0], -1, 1))
        assert np.array_equal(step.next_observation[0], observation.astype(np.float32))
        assert step.reward[0] == reward
        assert step.terminated[0] == terminated
        if terminated:
            break


@pytest.mark.parametrize("env_id", mujoco_ids())
def test_the_batched_engine_makes_gymnasiums_transitions(env_id):
    assert batched_serves(env_id)
    ours, theirs = (opened(engine, env_id, [3, 4, 5], same_seed) for engine in ("batched", "gymnasium"))
    rng = np.random.default_rng(0)
    for _ in range(110):
        action = 0.7 * rng.standard_normal((3, ours.spec.action_dim)).astype(np.float32)
        found, expected = ours.step(action), theirs.step(action)
        # The simulators are the same to the bit; sums over the reward's terms may be taken in another order.
        assert np.array_equal(found.next_observation, expected.next_observation)
        assert np.allclose(found.reward, expected.reward, rtol=CLOSE, atol=CLOSE)
        assert np.array_equal(found.terminated, expected.terminated)
        assert np.array_equal(found.truncated, expected.truncated)
        assert np.array_equal(ours.observation, theirs.observation)
    terms, their_terms = ours.take_reward_terms(), theirs.take_reward_terms()
    assert terms.keys() == their_terms.keys()
    for name, total in their_terms.items():
        assert np.allclose(terms[name], total, rtol=CLOSE, atol=CLOSE), name


@pytest.mark.parametrize("env_id", mujoco_ids())
def test_task_functions_say_of_tensors_what_they_say_of_arrays(env_id):
    vector = opened("batched", env_id, [3, 4, 5], same_seed)
    task = vector._dynamics
    rng = np.random.default_rng(0)
    for _ in range(40):
        before = copy(task.position(vector._state))
        action = rng.standard_normal((3, vector.spec.action_dim)).astype(np.float32)
        vector._advance(action)
        state = {name: torch.from_numpy(value.copy()) for name, value in vector._state.items()}
        found = task.outcome(torch.from_numpy(before), state, torch.from_numpy(action))
        expected = task.outcome(before, vector._state, action)
        assert isinstance(found.terminated, torch.Tensor)
        assert torch.equal(found.terminated, torch.from_numpy(expected.terminated))
        assert np.allclose(task.observation(state), task.observation(vector._state), rtol=CLOSE, atol=CLOSE)
        assert np.allclose(found.reward, expected.reward, rtol=ACTIONS, atol=ACTIONS)
        assert found.terms.keys() == expected.terms.keys()


def test_an_id_without_a_batched_form_is_served_by_gymnasium_and_refused_by_name():
    assert not batched_serves("Hopper-v4")
    assert isinstance(opened("auto", "Hopper-v4", [0], same_seed), GymnasiumVector)
    assert isinstance(opened("auto", "Hopper-v5", [0], same_seed), BatchedVector)
    assert isinstance(opened("gymnasium", "Hopper-v5", [0], same_seed), GymnasiumVector)
    with pytest.raises(ValueError, match=r"found HopperEnv; use task\.engine=gymnasium"):
        spec_of("batched", "Hopper-v4")


def test_termination_keeps_the_true_next_observation_and_resets_in_the_same_step(Engine):
    vector = Engine("InvertedPendulum-v5", [1], same_seed)
    while True:
        step = vector.step(np.full((1, 1), 3.0, dtype=np.float32))
        if step.terminated[0]:
            break
    # The pendulum terminates where its angle (observation 1) passes .2 rad; a reset draws angles within .01.
    assert abs(step.next_observation[0, 1]) > 0.2
    assert abs(vector.observation[0, 1]) < 0.2
    length = step.finished[0][1]
    assert step.finished == [(float(length - 1), length)]  # +1 per step, 0 on the terminal one
    assert vector.elapsed[0] == 0
    fresh = Engine("InvertedPendulum-v5", [1], lambda start, _: same_seed(start, 1))
    assert np.array_equal(vector.observation, fresh.observation)


def test_time_limit_is_a_truncation_and_not_a_termination(AnyEngine):
    vector = AnyEngine("Reacher-v5", [0, 1], same_seed)
    steps = play(vector, 51)
    assert [bool(s.truncated.any()) for s in steps] == [False] * 49 + [True, False]  # Reacher's limit is 50 steps
    assert not any(s.terminated.any() for s in steps)
    assert not np.array_equal(steps[49].next_observation, vector.observation)
    assert [length for _, length in steps[49].finished] == [50, 50]


def test_rows_of_equal_start_share_every_episode_start(AnyEngine):
    vector = AnyEngine("Reacher-v5", [3, 3, 4], same_seed)
    play(vector, 50)
    assert np.array_equal(vector.observation[0], vector.observation[1])
    assert not np.array_equal(vector.observation[0], vector.observation[2])


@pytest.mark.parametrize("env_id", mujoco_ids())
def test_state_round_trip_continues_bit_for_bit(env_id, Engine):
    vector = Engine(env_id, [0, 5], same_seed)
    play(vector, 20, seed=1)
    state = vector.state_dict()
    expected = play(vector, 30, seed=2)
    # Another process: fresh simulators that have been somewhere else in between.
    other = Engine(env_id, [8, 9], same_seed)
    play(other, 7, seed=3)
    other.load_state_dict(state)
    found = play(other, 30, seed=2)
    for a, b in zip(expected, found, strict=True):
        assert np.array_equal(a.next_observation, b.next_observation)
        assert np.array_equal(a.reward, b.reward)
        assert np.array_equal(a.terminated, b.terminated)
        assert a.finished == b.finished
    assert np.array_equal(vector.observation, other.observation)
    assert {k: v.shape for k, v in vector.state_dict().items()} == {k: v.shape for k, v in state.items()}


def test_state_of_another_size_is_refused(AnyEngine):
    state = AnyEngine("Reacher-v5", [0, 1], same_seed).state_dict()
    with pytest.raises(ValueError, match="expected 3 environments, found 2"):
        AnyEngine("Reacher-v5", [0, 1, 2], same_seed).load_state_dict(state)


def test_state_is_plain_tensors(AnyEngine):
    state = AnyEngine("Reacher-v5", [0], same_seed).state_dict()
    assert all(isinstance(v, torch.Tensor) for v in state.values())


def test_actions_are_clipped_before_costs_are_computed(AnyEngine):
    wide, edge = (AnyEngine("HalfCheetah-v5", [0], same_seed) for _ in range(2))
    a = wide.step(np.full((1, 6), 5.0, dtype=np.float32))
    b = edge.step(np.full((1, 6), 1.0, dtype=np.float32))
    assert a.reward[0] == b.reward[0]
    # ctrl_cost_weight .1 * sum of six squared ones
    assert wide.take_reward_terms()["ctrl"][0] == pytest.approx(-0.6, abs=1e-6)


def test_an_action_that_is_not_finite_gives_a_reward_that_is_not_finite(AnyEngine):
    vector = AnyEngine("InvertedPendulum-v5", [0, 1], same_seed)
    step = vector.step(np.array([[np.nan], [0.0]], dtype=np.float32))
    assert np.isnan(float(step.reward[0]))
    assert np.isfinite(float(step.reward[1]))


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("HalfCheeta-v5", "unknown environment 'HalfCheeta-v5'; did you mean HalfCheetah-v5"),
        ("CheetahRun-v9", r"DM Control, e\.g\. CheetahRun-v1, need pip install 'rlflow\[envpool\]'"),
        ("Nonsense", "known: Ant-v5"),
        ("CartPole-v1", "expected a flat Box of continuous actions, found Discrete"),
        ("Pendulum-v1", "expected a MuJoCo environment, found PendulumEnv; use one of Ant-v5"),
        ("Hopper-v2", "Hopper-v5"),
    ],
)
def test_environments_that_cannot_run_are_refused_with_a_way_out(env_id, message):
    with pytest.raises(ValueError, match="(?s)" + message):
        spec_of("auto", env_id)


EVERY_ENGINE = ["auto", "batched", "gymnasium", "envpool", pytest.param("warp", marks=needs_warp)]


@pytest.mark.parametrize("engine", EVERY_ENGINE)
@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("HalfCheeta-v5", "unknown .*environment 'HalfCheeta-v5'; did you mean HalfCheetah-v5"),
        ("CartPole-v1", "expected a flat Box of continuous actions, found Discrete"),
    ],
)
def test_every_engine_refuses_an_unknown_id_and_discrete_actions(engine, env_id, message):
    with pytest.raises(ValueError, match=message):
        spec_of(engine, env_id)


@pytest.mark.parametrize("engine", [e for e in EVERY_ENGINE if e != "envpool"])
def test_dict_observations_are_refused(engine):
    class Maze(gymnasium.Env):
        observation_space = gymnasium.spaces.Dict({"goal": gymnasium.spaces.Box(-1, 1, (2,))})
        action_space = gymnasium.spaces.Box(-1, 1, (2,))

    gymnasium.register("RlflowMaze-v0", entry_point=Maze, max_episode_steps=5, disable_env_checker=True)
    try:
        with pytest.raises(ValueError, match="expected flat Box observations, found Dict"):
            spec_of(engine, "RlflowMaze-v0")
    finally:
        gymnasium.registry.pop("RlflowMaze-v0")


def simulator(vector, i):
    return vector.envs[i].data if isinstance(vector, GymnasiumVector) else vector._data[i]


@pytest.mark.parametrize("value", [np.nan, 1e30])
def test_an_unstable_simulator_ends_its_episode_without_a_transition(Engine, value):
    vector, undisturbed = (Engine("Hopper-v5", [3, 4], same_seed) for _ in range(2))
    play(vector, 2)
    play(undisturbed, 2)
    # MuJoCo puts the initial state in place of this one and goes on as if nothing had been.
    simulator(vector, 0).qvel[1] = value
    action = np.zeros((2, 3), dtype=np.float32)
    step, expected = vector.step(action), undisturbed.step(action)
    assert (step.broken.tolist(), step.reward[0], step.terminated[0], step.finished) == ([True, False], 0.0, False, [])
    assert np.array_equal(step.next_observation[1], expected.next_observation[1])
    assert (vector.episode.tolist(), vector.elapsed.tolist()) == ([1, 0], [0, 3])
    fresh = Engine("Hopper-v5", [3], lambda start, _: same_seed(start, 1))
    assert np.array_equal(vector.observation[0], fresh.observation[0])
    assert np.isfinite(vector.take_reward_terms()["forward"]).all()
    # The new episode is as good as any.
    again, other = vector.step(action), fresh.step(action[:1])
    assert not again.broken.any()
    assert np.array_equal(again.next_observation[0], other.next_observation[0])
