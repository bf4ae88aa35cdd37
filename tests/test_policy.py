import pytest
import torch
from torch import nn

from rlflow.policies.causal_lm import CausalLMPolicy
from rlflow.policies.flow import FlowPolicy
from rlflow.policies.gaussian import GaussianPolicy
from rlflow.policy import MissingCapabilityError, Policy, capabilities, check_capabilities
from tests.fakes import FakePolicy, block


@pytest.mark.parametrize(
    ("policy_class", "expected"),
    [
        (GaussianPolicy, {"log_prob", "elbo", "value", "partition", "reference", "entropy", "divergence"}),
        (CausalLMPolicy, {"log_prob", "elbo", "value", "partition", "reference", "entropy"}),
        (FlowPolicy, {"log_prob", "elbo", "value", "partition", "reference", "divergence", "steps"}),
        (Policy, set()),
    ],
)
def test_capabilities_are_read_off_the_class(policy_class, expected):
    assert capabilities(policy_class) == expected


def test_a_missing_capability_is_named():
    with pytest.raises(MissingCapabilityError) as error:
        check_capabilities(FlowPolicy, frozenset({"log_prob", "entropy"}), "ppo", "image/x")
    assert "algorithm 'ppo' cannot run on task 'image/x': it requires ['entropy']" in str(error.value)
    assert "FlowPolicy" in str(error.value)


def test_an_unknown_capability_is_named():
    with pytest.raises(MissingCapabilityError, match=r"requires unknown capabilities \['logprob'\]; known are"):
        check_capabilities(FlowPolicy, frozenset({"logprob"}), "x", "y")


def test_an_unknown_reference_is_refused():
    with pytest.raises(ValueError, match=r"reference: expected one of .* found 'previous'"):
        GaussianPolicy(nn.Identity(), requires=frozenset(), reference="previous")


def test_old_likelihoods_are_the_samplers_where_given_else_a_replay():
    given, replayed = torch.full((1, 1, 1), -1.0), torch.full((1, 1, 1), -2.0)
    policy = FakePolicy(log_prob=replayed)
    policy.requires = frozenset({"log_prob"})
    sampled = block([[0.0]], action={"log_prob": given})
    policy.record_behaviour(sampled)
    assert sampled.old_log_prob is given
    assert sampled.action == {}
    bare = block([[0.0]])
    policy.record_behaviour(bare)
    assert bare.old_log_prob is replayed


def test_likelihoods_that_nobody_asked_for_are_not_recorded():
    rollout = block([[0.0]])
    FakePolicy(log_prob=torch.zeros(1, 1, 1)).record_behaviour(rollout)
    assert rollout.old_log_prob is None


def test_parameters_outside_the_known_heads_train_with_the_actor():
    policy = FakePolicy()
    policy.actor, policy.extra, policy.critic = nn.Linear(1, 1), nn.Linear(1, 1, bias=False), nn.Linear(1, 1)
    policy.frozen = nn.Linear(1, 1).requires_grad_(False)
    assert {name: len(group) for name, group in policy.parameter_groups().items()} == {"actor": 3, "critic": 2}
