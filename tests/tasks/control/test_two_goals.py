import math

import pytest
import torch

from rlflow.config import resolve
from rlflow.random import Noise, generator
from rlflow.rollout import assert_shapes
from rlflow.testing import task_checks
from tasks.control.two_goals import BEST_RETURN, GOALS, HORIZON, START_SPREAD, bimodality

EXACT = 1e-5
NAME = "control/two_goals"


def noise():
    return Noise(generator=generator(0))


class Fixed:
    """Walks to the left or to the right, row by row."""

    def __init__(self, sides):
        self.sides = torch.tensor(sides)

    def sample(self, context, noise, *, train=True):
        return {"action": torch.stack([self.sides, torch.zeros_like(self.sides)], dim=1)}


def evaluated(sides):
    task = resolve("ppo", NAME, [f"task.evaluation_rollouts={len(sides)}"]).task
    return task.evaluate(Fixed(sides), noise()).metrics


def test_the_straight_way_is_the_reference():
    # Distances .8 .6 .4 .2 0 0 0 0: exp(-2.56) + exp(-1.44) + exp(-.64) + exp(-.16) + 4
    by_hand = math.exp(-2.56) + math.exp(-1.44) + math.exp(-0.64) + math.exp(-0.16) + 4
    assert pytest.approx(by_hand, abs=EXACT) == BEST_RETURN
    # Steps of 1 pass the goal after the fifth one; those that stop there are the best.
    assert evaluated([0.625] * 2)["score"] < BEST_RETURN


def test_coverage_is_even_only_where_both_goals_are_reached():
    # Eight steps of .2 * .625 end exactly at a goal.
    one = evaluated([0.625] * 4)
    assert (one["reached"], one["mode_coverage"]) == (1.0, 0.0)
    both = evaluated([0.625, -0.625, -0.625, -0.625])
    # A quarter on the right: 2 * .25
    assert (both["reached"], both["mode_coverage"]) == (1.0, 0.5)
    none = evaluated([0.1, -0.1])
    assert (none["reached"], none["mode_coverage"]) == (0.0, 0.0)


def test_bimodality_tells_two_modes_from_a_broad_one():
    assert bimodality(torch.tensor([-1.0, 1.0] * 50)) == pytest.approx(1.0, abs=EXACT)
    normal = torch.randn(200_000, generator=generator(0))
    assert bimodality(normal) == pytest.approx(1 / 3, abs=0.01)
    assert bimodality(torch.zeros(5)) <= 1.0


@pytest.mark.parametrize("kind", ["gaussian", "flow"])
def test_a_rollout_is_whole_episodes_from_places_that_groups_share(kind):
    config = resolve("ppo", NAME, [f"task.policy={kind}", "task.groups_per_rollout=3", "task.group_size=2"])
    policy = config.task.build_policy(config.algorithm.requires)
    with torch.no_grad():
        rollout = config.task.score(config.task.rollout(policy, torch.tensor([5, 6, 5]), noise()))
    assert_shapes(rollout)
    start = rollout.context["observation"][:, 0]
    assert torch.equal(start[0], start[1])
    assert torch.equal(start[0], start[4])
    assert not torch.equal(start[0], start[2])
    assert float(start[:, :2].abs().max()) <= START_SPREAD
    assert rollout.context["observation"][0, :, 2].tolist() == [t / HORIZON for t in range(HORIZON)]
    assert rollout.terminated.tolist() == [[False] * (HORIZON - 1) + [True]] * 6
    # The second observation is the first one moved by .2 times the clipped action.
    action = rollout.action["action" if kind == "gaussian" else "sample"][:, 0].clamp(-1, 1)
    assert torch.allclose(rollout.context["observation"][:, 1, :2], start[:, :2] + 0.2 * action, atol=EXACT)
    end = rollout.extras["end"]
    nearest = torch.stack([(end - end.new_tensor(goal)).norm(dim=1) for goal in GOALS]).min(dim=0).values
    assert torch.allclose(rollout.reward[:, -1], torch.exp(-4 * nearest**2), atol=EXACT)


@pytest.mark.parametrize("check", task_checks(), ids=lambda check: check.__name__)
def test_it_passes_the_public_checks(check):
    check(resolve("ppo", NAME, ["task.groups_per_rollout=4", "task.group_size=2", "task.evaluation_rollouts=8"]).task)
