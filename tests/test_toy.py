import pytest
import torch

from rlflow.random import Noise, generator
from rlflow.rollout import assert_shapes
from rlflow.toy import ACTION_DIM, EOS, GOOD, KINDS, ToyTask
from tests.fakes import block


def rollout_of(kind, **settings):
    task = ToyTask(kind=kind, groups_per_rollout=3, group_size=2, **settings)
    torch.manual_seed(0)
    policy = task.build_policy(frozenset({"log_prob"})).eval()
    with torch.no_grad():
        return task, task.rollout(policy, torch.tensor([4, 0, 9]), Noise(generator=generator(0)))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_group_major_and_sizes_are_the_documented_ones(kind):
    task, rollout = rollout_of(kind, horizon=2)
    assert_shapes(rollout)
    assert rollout.group.tolist() == [4, 4, 0, 0, 9, 9]
    assert rollout.mask.shape == (6, 2)
    assert task.samples_per_rollout == 6
    assert task.rows_per_rollout == (6 if kind == "causal_lm" else 12)
    assert rollout.decisions_independent == (kind != "causal_lm")


@pytest.mark.parametrize(("kind", "field"), [("gaussian", "action"), ("flow", "sample")])
def test_a_positive_first_dimension_earns_one(kind, field):
    action = torch.tensor([[[0.5, -1.0]], [[-0.5, 1.0]]])
    assert action.shape[-1] == ACTION_DIM
    scored = ToyTask(kind=kind).score(block([[0.0], [0.0]], action={field: action}))
    assert scored.reward.tolist() == [[1.0], [0.0]]
    assert scored.reward_terms["hit"].tolist() == [1.0, 0.0]


def test_the_good_token_first_earns_one_at_the_last_token():
    ends = torch.tensor([[False, True], [True, False], [False, True]])
    token = torch.tensor([[GOOD, EOS], [EOS, 0], [3, GOOD]])
    scored = ToyTask(kind="causal_lm").score(
        block([[0, 0]] * 3, action={"token": token}, terminated=ends, boundary=ends)
    )
    assert scored.reward.tolist() == [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("requires", "heads"),
    [({"log_prob"}, set()), ({"value"}, {"critic"}), ({"partition", "value"}, {"critic", "partition"})],
)
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_heads_asked_for_exist(kind, requires, heads):
    assert set(ToyTask(kind=kind).build_policy(frozenset(requires)).parameter_groups()) == {"actor", *heads}
