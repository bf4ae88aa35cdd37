import math

import pytest
import torch
from torch import nn

from rlflow.policies.gaussian import DiagonalGaussian, GaussianPolicy, LogDensity
from rlflow.policies.heads import RunningNorm, mlp
from rlflow.policy import MissingCapabilityError
from rlflow.random import Noise, generator
from tests.fakes import block

EXACT = 1e-6
ROUNDED = 1e-4


def fixed_policy(requires=("log_prob",), **changes):
    """Mean 2x and -x with standard deviations e^0 and e^.5."""
    mean = nn.Linear(1, 2, bias=False)
    actor = DiagonalGaussian(mean, 2)
    with torch.no_grad():
        mean.weight.copy_(torch.tensor([[2.0], [-1.0]]))
        actor.log_std.copy_(torch.tensor([0.0, 0.5]))
    return GaussianPolicy(actor, requires=frozenset(requires), **changes)


def rollout_at(observation, action):
    values = {"context": {"observation": torch.tensor([[[observation]]])}, "decisions_independent": True}
    return block([[0.0]], action={"action": torch.tensor([[action]])}, **values)


def test_log_prob_by_hand_and_tight_bound():
    policy, rollout = fixed_policy(), rollout_at(1.0, [3.0, -1.0])
    # z = (3-2)/1 = 1 and (-1+1)/e^.5 = 0: -.5 - 0 - .5 - 2*.918939 = -2.837877
    found = policy.log_prob(rollout)
    assert found.shape == (1, 1, 1)
    assert found.item() == pytest.approx(-2.837877, abs=EXACT)
    assert torch.equal(policy.elbo(rollout), found)


def test_sample_draws_around_the_mean_and_is_the_mean_in_evaluation():
    policy, context = fixed_policy(), {"observation": torch.ones(20_000, 1)}
    drawn = policy.sample(context, Noise(generator=generator(0)))["action"]
    # Means 2, -1, std 1, e^.5 = 1.6487; standard errors std/141 = .007, .012
    assert torch.allclose(drawn.mean(0), torch.tensor([2.0, -1.0]), atol=0.05)
    assert torch.allclose(drawn.std(0), torch.tensor([1.0, 1.648721]), atol=0.05)
    mean = policy.sample(context, Noise(generator=generator(0)), train=False)["action"]
    assert mean[0].tolist() == [2.0, -1.0]


def test_kl_and_reference_by_hand():
    policy, rollout = fixed_policy(("log_prob", "reference"), reference="initial"), rollout_at(1.0, [3.0, -1.0])
    assert float(policy.kl(rollout)) == 0.0
    with torch.no_grad():
        policy.actor.mean.weight.copy_(torch.tensor([[3.0], [-1.0]]))
        policy.actor.log_std[1] = 0.0
    # First dimension: .5*(1 + 1 - 1) = .5. Second: .5*(e^-1 + 0 - 1 + 1) = .183940
    assert policy.kl(rollout).item() == pytest.approx(0.683940, abs=EXACT)
    assert policy.ref_log_prob(rollout).item() == pytest.approx(-2.837877, abs=EXACT)
    assert not policy.ref_log_prob(rollout).requires_grad


def test_behaviour_reference_moves_at_the_end_of_an_iteration_only():
    policy, rollout = fixed_policy(("log_prob", "reference")), rollout_at(1.0, [3.0, -1.0])
    with torch.no_grad():
        policy.actor.log_std.add_(1.0)
    assert float(policy.kl(rollout)) > ROUNDED
    policy.end_iteration(rollout)
    assert float(policy.kl(rollout)) == 0.0


def test_without_reference_the_message_names_it():
    with pytest.raises(MissingCapabilityError, match="built without 'reference'; add it to `requires`"):
        fixed_policy().kl(rollout_at(1.0, [3.0, -1.0]))


def test_entropy_by_hand():
    # Sum of log stds .5 plus 2 * .5 ln(2 pi e) = 2.837877
    expected = 0.5 + math.log(2 * math.pi * math.e)
    assert fixed_policy().entropy(rollout_at(1.0, [0.0, 0.0])).item() == pytest.approx(expected, abs=EXACT)


def test_heads_and_their_parameter_groups():
    policy = fixed_policy(("log_prob", "value", "partition"), critic=mlp([1, 1]), partition=mlp([1, 1]))
    rollout = rollout_at(2.0, [0.0, 0.0])
    assert policy.value(rollout).shape == (1, 1)
    assert policy.log_partition(rollout).shape == (1, 1)
    assert {k: len(v) for k, v in policy.parameter_groups().items()} == {"actor": 2, "critic": 2, "partition": 2}


def test_statistics_change_only_at_the_end_of_an_iteration():
    policy = fixed_policy(normaliser=RunningNorm((1,)))
    rollout = rollout_at(4.0, [3.0, -1.0])
    rollout.context["observation"] = torch.tensor([[[4.0], [8.0]]])
    rollout.action["action"] = torch.zeros(1, 2, 2)
    before = policy.log_prob(rollout)
    assert torch.equal(policy.log_prob(rollout), before)
    policy.end_iteration(rollout)
    # Mean 6, std 2: observations become -1 and 1, whose means are (-2, 1) and (2, -1).
    assert torch.allclose(policy.sample({"observation": torch.tensor([[8.0]])}, Noise(generator=generator(0)),
                                        train=False)["action"], torch.tensor([[2.0, -1.0]]), atol=ROUNDED)  # fmt: skip
    assert not torch.allclose(policy.log_prob(rollout), before)


def test_the_divergence_from_the_old_moments_by_hand():
    policy, rollout = fixed_policy(), rollout_at(1.0, [3.0, -1.0])
    # Means 2, -1 and log std 0, .5 now.
    assert policy.moments(rollout).tolist() == [[[[2.0, -1.0, 0.0, 0.5]]]]
    # Old: means 3, -1, log std 0, 0. KL(old, new): .5*1 = .5; .5*(e^-1 + 0 - 1 + 2*.5) = .183940
    found = policy.divergence(rollout, torch.tensor([[[[3.0, -1.0, 0.0, 0.0]]]]))
    assert found.shape == (1, 1, 1)
    assert found.item() == pytest.approx(0.683940, abs=EXACT)
    assert policy.divergence(rollout, policy.moments(rollout)).item() == 0.0


def test_prepared_rows_have_the_same_likelihoods_to_the_bit_and_are_normalised_once():
    normaliser = RunningNorm((1,))
    normaliser.update(torch.tensor([[0.0], [4.0]]))
    policy = fixed_policy(("log_prob", "value"), normaliser=normaliser, critic=nn.Linear(1, 1))
    rows = rollout_at(3.0, [0.5, -1.0])
    prepared = policy.prepared(rows)
    normaliser.forward = lambda x: pytest.fail("normalised again")
    found = policy.log_prob(prepared), policy.value(prepared)
    del normaliser.forward
    assert torch.equal(found[0], policy.log_prob(rows))
    assert torch.equal(found[1], policy.value(rows))
    assert torch.equal(prepared.context["observation"], rows.context["observation"])


def test_the_gradient_of_the_density_by_hand_and_to_the_bit_of_autograd():
    policy, rollout = fixed_policy(), rollout_at(1.0, [3.0, -1.5])
    policy.log_prob(rollout).sum().backward()
    # z = (3-2)/1 = 1 and (-1.5+1)/e^.5 = -.303265.
    # d/dmean = z/std = 1 and -.183940, d/dlog_std = z^2 - 1 = 0 and -.908030
    assert policy.actor.mean.weight.grad[:, 0].tolist() == pytest.approx([1.0, -0.183940], abs=EXACT)
    assert policy.actor.log_std.grad.tolist() == pytest.approx([0.0, -0.908030], abs=EXACT)
    shape = (64, 2, 3)
    action, mean, weight = (torch.randn(shape, generator=generator(k)) for k in range(3))
    gradients = []
    for density in (LogDensity.apply, term_by_term):
        leaves = [mean.clone().requires_grad_(), torch.tensor([0.3, -1.0, 0.0]).requires_grad_()]
        density(action, *leaves).mul(weight[..., :1]).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def term_by_term(action, mean, log_std):
    z = (action - mean) * (-log_std).exp()
    return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1, keepdim=True)
