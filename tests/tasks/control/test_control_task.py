import tempfile
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch

from rlflow.advantage import next_values
from rlflow.config import ConfigError, resolve
from rlflow.random import Noise, generator
from rlflow.registry import entries
from rlflow.rollout import assert_shapes
from rlflow.suite import load_suite
from rlflow.testing import task_checks
from rlflow.trainer import Loop
from tasks.control.evaluation import NUM_EVAL_SEEDS
from tasks.control.gymnasium_mujoco import train_seed

ROUNDED = 1e-5
SMALL = ["task.num_steps=16", "task.group_size=4", "task.eval_episodes=2", "task.video=false"]
QUICK = [*SMALL, "update.epochs=1", "update.updates_per_rollout=2"]


class Points:
    """Every logged value by name."""

    def __init__(self):
        self.points = {}

    def log(self, metrics, step):
        for name, value in metrics.items():
            self.points.setdefault(name, []).append((step, value))

    def artifact(self, path, folder):
        assert path.is_file()


ALGORITHMS = ("flow_grpo", "flowrl", "fpo", "ppo", "reinforce_pp")


def noise(seed=0):
    return Noise(generator=generator(seed))


def opened(task="control/halfcheetah", algorithm="ppo", *overrides):
    config = resolve(algorithm, task, [*QUICK, *overrides])
    torch.manual_seed(0)
    return config.task, config.task.build_policy(config.algorithm.requires)


def block(task, policy, seed=0, start=NUM_EVAL_SEEDS):
    with torch.no_grad():
        return task.score(task.rollout(policy, torch.tensor([start]), noise(seed)))


@pytest.mark.parametrize("actor", ["gaussian", "flow"])
def test_rollout_keeps_raw_observations_and_the_shapes_of_the_contract(actor):
    task, policy = opened("control/halfcheetah", "ppo", f"task.policy={actor}")
    rollout = block(task, policy)
    assert_shapes(rollout)
    assert rollout.decisions_independent
    assert rollout.mask.shape == (4, 16)
    assert rollout.context["observation"].dtype == torch.float32
    # All rows of the one group start from the same state; nothing is terminated, so every row ends open.
    first = rollout.context["observation"][:, 0]
    assert torch.equal(first, first[:1].expand_as(first))
    assert rollout.boundary_context["observation"].shape == (4, 1, 17)


def test_true_next_observations_are_in_row_major_order_of_open_boundaries():
    task, policy = opened("control/Reacher-v5", "ppo", "task.num_steps=64")
    rollout = block(task, policy)
    following = block(task, policy, seed=1)
    # The limit is 50 steps: each row is open at column 49 (time limit) and at column 63 (end of the block).
    open_ends = (rollout.boundary & ~rollout.terminated).nonzero()
    assert open_ends.tolist() == [[row, column] for row in range(4) for column in (49, 63)]
    ends = rollout.boundary_context["observation"][:, 0]
    # At the end of a block that cuts an episode, the true next observation is the first of the next block.
    assert torch.equal(ends[1::2], following.context["observation"][:, 0])
    # At the time limit it is NOT what the row sees next: that is the reset.
    assert not torch.equal(ends[0::2], rollout.context["observation"][:, 50])
    assert torch.equal(rollout.extras["ended"].nonzero(), open_ends[0::2])


def test_bootstrap_reads_the_true_next_observation_and_nothing_behind_a_termination():
    task, policy = opened("control/InvertedPendulum-v5", "ppo", "task.num_steps=128")
    rollout = block(task, policy)
    assert rollout.terminated.any()
    value = torch.zeros(4, 128)

    def first_coordinate(ends):
        return ends.context["observation"][..., 0]

    following = next_values(first_coordinate, rollout, value)
    open_ends = rollout.boundary & ~rollout.terminated
    assert torch.equal(following[open_ends], rollout.boundary_context["observation"][:, 0, 0])
    assert len(rollout.boundary_context["observation"]) == int(open_ends.sum()) <= 4
    assert torch.equal(rollout.extras["ended"], rollout.terminated)


def test_group_that_ends_together_starts_together_again():
    task, policy = opened("control/Reacher-v5", "flow_grpo", "task.num_steps=64", "task.groups_per_rollout=2")
    with torch.no_grad():
        rollout = task.rollout(policy, torch.tensor([NUM_EVAL_SEEDS, NUM_EVAL_SEEDS + 1]), noise())
    assert rollout.group.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    again = rollout.context["observation"][:, 50]
    assert torch.equal(again[:4], again[:1].expand(4, -1))
    assert torch.equal(again[4:], again[4:5].expand(4, -1))
    assert not torch.equal(again[0], again[4])


def test_training_seeds_never_meet_evaluation_seeds():
    task, _ = opened()
    starts = task.starts()
    assert starts[0] == NUM_EVAL_SEEDS
    assert starts[-1] < 2**31
    drawn = [train_seed(start, episode) for start in (starts[0], starts[-1]) for episode in range(50)]
    assert min(drawn) >= NUM_EVAL_SEEDS
    assert max(drawn) < 2**31
    assert len(set(drawn)) == 100


@pytest.mark.parametrize("actor", ["gaussian", "flow"])
def test_state_round_trip_continues_bit_for_bit(actor):
    task, policy = opened("control/Hopper-v5", "ppo", f"task.policy={actor}")
    block(task, policy, seed=1)
    state = task.state_dict()
    expected = block(task, policy, seed=2)
    other, _ = opened("control/Hopper-v5", "ppo", f"task.policy={actor}")
    block(other, policy, seed=3, start=NUM_EVAL_SEEDS + 9)
    other.load_state_dict(state)
    found = block(other, policy, seed=2, start=NUM_EVAL_SEEDS + 5)
    assert torch.equal(expected.reward, found.reward)
    assert torch.equal(expected.context["observation"], found.context["observation"])
    assert torch.equal(expected.boundary, found.boundary)
    assert expected.metrics == found.metrics


def test_state_of_another_number_of_processes_is_refused():
    task, _ = opened()
    with pytest.raises(ValueError, match=r"resume with trainer.devices=2"):
        task.load_state_dict({"ranks": task.state_dict()["ranks"] * 2})


@pytest.mark.parametrize("check", task_checks(), ids=lambda check: check.__name__)
def test_task_passes_the_public_conformance_checks(check):
    task, _ = opened("control/Hopper-v5")
    assert check(task) is None


def test_same_seed_gives_the_same_rollout_and_another_seed_does_not():
    rollouts = []
    for seed in (0, 0, 1):
        task, policy = opened()
        rollouts.append(block(task, policy, seed=seed).reward)
    assert torch.equal(rollouts[0], rollouts[1])
    assert not torch.equal(rollouts[0], rollouts[2])


@pytest.mark.parametrize(("actor", "start"), [("gaussian", "noise"), ("flow", "noise"), ("flow", "mean")])
def test_evaluation_repeats_itself_on_fixed_seeds_with_raw_reward(actor, start):
    task, policy = opened("control/Reacher-v5", "ppo", f"task.policy={actor}", f"task.flow.eval_start={start}")
    block(task, policy)
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    state = task.state_dict()["ranks"][0]["vector"]["simulator"]
    results = [task.evaluate(policy, noise(seed)) for seed in (0, 7)]
    assert results[0].metrics == results[1].metrics
    assert [item["seed"] for item in results[0].items] == [0, 1]
    returns = [item["return"] for item in results[0].items]
    assert results[0].metrics["score"] == pytest.approx(np.mean(returns), abs=ROUNDED)
    assert [item["length"] for item in results[0].items] == [50, 50]
    # Neither the normaliser nor the training episodes have moved.
    assert all(torch.equal(before[k], v) for k, v in policy.state_dict().items())
    assert torch.equal(state, task.state_dict()["ranks"][0]["vector"]["simulator"])


def test_videos_come_with_the_first_and_every_fifth_evaluation():
    task, policy = opened("control/Reacher-v5", "ppo", "task.video=true", "task.eval_episodes=1")
    shown = [bool(task.evaluate(policy, noise()).files) for _ in range(7)]
    assert shown == [True, False, False, False, False, True, False]


def test_reward_is_scaled_clipped_and_logged_raw():
    task, policy = opened(
        "control/halfcheetah", "ppo", "task.reward_scaling=constant", "task.reward_factor=10", "task.reward_clip=2"
    )
    with torch.no_grad():
        raw = task.rollout(policy, torch.tensor([NUM_EVAL_SEEDS]), noise())
    scored = task.score(raw)
    assert torch.allclose(scored.reward, (raw.reward * 10).clamp(-2, 2))
    assert (scored.reward.abs() == 2).any()
    assert torch.allclose(scored.reward_terms["raw"], raw.reward.mean(1))
    # HalfCheetah's reward is its forward reward plus its (negative) control cost.
    parts = scored.reward_terms["forward"] + scored.reward_terms["ctrl"]
    assert torch.allclose(parts.float(), raw.reward.mean(1), atol=ROUNDED)


def test_flow_policy_starts_near_the_standard_normal():
    _, policy = opened("control/halfcheetah", "fpo", "task.policy=flow")
    with torch.no_grad():
        sample = policy.sample({"observation": torch.zeros(4096, 17)}, noise())["sample"]
    # Standard error of a standard deviation of 1 over 4096 x 6 draws is .0045.
    assert abs(float(sample.std()) - 1.0) < 0.05
    assert abs(float(sample.mean())) < 0.05


@pytest.mark.parametrize("actor", ["gaussian", "flow"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_runs_an_iteration_with_ratio_one(algorithm, actor):
    config = resolve(
        algorithm, "control/InvertedPendulum-v5",
        [*QUICK, "task.num_steps=8", f"task.policy={actor}", "trainer.budget=64", "trainer.num_evaluations=2"],
    )  # fmt: skip
    tracker = Points()
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(config, tracker, Path(folder))
        before = [p.detach().clone() for p in loop.policy.actor.parameters()]
        lightning.Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, num_sanity_val_steps=0,
        ).fit(loop)  # fmt: skip
    config.task.close()
    assert len(tracker.points["eval/score"]) == 2
    assert any(not torch.equal(a, b) for a, b in zip(before, loop.policy.actor.parameters(), strict=True))
    if "update/first_ratio_error" in tracker.points:
        assert tracker.points["update/first_ratio_error"][0][1] < ROUNDED


def test_the_registry_holds_the_algorithms_that_are_tested():
    assert set(ALGORITHMS) <= set(entries("algorithm"))


def test_unknown_environment_is_refused_when_the_run_is_configured():
    with pytest.raises(ConfigError, match="did you mean Hopper-v5"):
        resolve("ppo", "control/Hoper-v5")


def test_sizes_that_cannot_run_are_refused():
    with pytest.raises(ConfigError, match="eval_episodes in"):
        resolve("ppo", "control/halfcheetah", ["task.eval_episodes=0"])


@pytest.mark.parametrize("name", load_suite("control-gym").tasks)
def test_tasks_of_the_suite_have_a_reference_above_the_untrained_policy(name):
    task, _ = opened(name)
    between = -8 if task.env_id == "Reacher-v5" else 900  # Reacher's returns are negative
    assert task.anchors.reference > between > task.anchors.base


def test_environment_without_anchors_counts_raw_returns():
    task, _ = opened("control/Pusher-v5")
    assert (task.anchors.base, task.anchors.reference) == (0.0, 1.0)
