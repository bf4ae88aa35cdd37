"""The invariants of every pair: each algorithm and its variants, on every policy kind that it can use."""

from dataclasses import dataclass, replace

import pytest
import torch

from algorithms.flow_grpo import FlowGrpo
from algorithms.flowrl import FlowRL
from algorithms.fpo import Fpo
from algorithms.ppo import Ppo
from algorithms.reinforce_pp import ReinforcePP
from rlflow.algorithm import Algorithm, Loss
from rlflow.registry import entries, find
from rlflow.rollout import Targets
from rlflow.testing import (
    ConformanceError,
    algorithm_checks,
    check_evaluation_is_frozen,
    check_gradient_ignores_micro_batches_and_row_order,
    check_gradient_ignores_padding,
    check_masked_decisions_have_no_gradient,
    check_ratio_is_one_on_the_first_minibatch,
    check_requires_known_capabilities,
    check_rewarded_decision_becomes_likelier,
    check_rollout_is_reproducible,
    check_rollout_shapes_and_groups,
    check_score_is_finite_and_named,
    check_state_round_trip,
    check_targets_carry_no_gradient,
    task_checks,
    usable_kinds,
)
from rlflow.toy import KINDS, ToyTask

CHECKS = algorithm_checks()
QUICK_CHECKS = [c for c in CHECKS if c is not check_rewarded_decision_becomes_likelier]

VARIANTS = [
    Fpo(ratio="per_sample"),
    Fpo(baseline="group"),
    Fpo(beta=0.1, negative_weight=0.5, value_clip=0.2),
    FlowRL(variant="release"),
    FlowRL(variant="cispo"),
    FlowRL(variant="cap10"),
    FlowRL(window=2),
    FlowRL(weight_exponent="sum"),
    FlowRL(length_normalised=False),
    ReinforcePP(variant="baseline", beta=0.1),
    Ppo(kl_weight=0.1),
    Ppo(kl_weight=0.1, kl_in="loss"),
    Ppo(entropy_weight=0.01),
    FlowGrpo(credit="to_go", gamma=0.9),
    FlowGrpo(scale="batch"),
    FlowGrpo(scale="none"),
    FlowGrpo(beta=0.1),
]
LEARNING = [
    Fpo(ratio="per_sample", baseline="group"),
    FlowRL(variant="cispo"),
    ReinforcePP(variant="baseline"),
]


def settings(algorithm):
    """The settings that are not the default, to name a test after."""
    default = type(algorithm)()
    changed = {k: v for k, v in vars(algorithm).items() if v != getattr(default, k)}
    return f"{type(algorithm).__name__}-" + "-".join(f"{k}={v}" for k, v in changed.items())


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", list(entries("algorithm")))
def test_registered_algorithm(name, check):
    check(find("algorithm", name).load()())


@pytest.mark.parametrize("check", QUICK_CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("algorithm", VARIANTS, ids=settings)
def test_variant(algorithm, check):
    check(algorithm)


@pytest.mark.parametrize("algorithm", LEARNING, ids=settings)
def test_variant_learns(algorithm):
    check_rewarded_decision_becomes_likelier(algorithm)


def test_every_default_runs_on_every_policy_kind():
    for name in entries("algorithm"):
        assert usable_kinds(find("algorithm", name).load()()) == list(KINDS), name
    # The flow policy has no entropy in closed form.
    assert usable_kinds(Ppo(entropy_weight=0.1)) == ["gaussian", "causal_lm"]


@pytest.mark.parametrize("check", task_checks(), ids=lambda c: c.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_toy_task(kind, check):
    check(ToyTask(kind=kind, horizon=3))


@dataclass(frozen=True, kw_only=True)
class Broken(Algorithm):
    """REINFORCE with one defect, to see that the checks bite."""

    defect: str = ""

    @property
    def requires(self):
        return frozenset({"logprob"} if self.defect == "requires" else {"log_prob"})

    def targets(self, policy, rollout):
        if self.defect == "old":
            rollout.old_log_prob = rollout.old_log_prob + 1e-4
        sign = -1.0 if self.defect == "sign" else 1.0
        advantage = sign * (rollout.reward.sum(1, keepdim=True) - 0.5).expand_as(rollout.reward)
        return Targets(tensors={"advantage": advantage[:, 0] if self.defect == "shape" else advantage})

    def loss(self, policy, minibatch):
        gain = policy.log_prob(minibatch).sum(-1) * minibatch.targets["advantage"]
        if self.defect == "mean":
            return Loss(terms={"policy": -gain.mean()})
        if self.defect == "rows":
            return Loss(terms={"policy": -minibatch.mean(gain * torch.arange(gain.shape[0])[:, None])})
        if self.defect == "mask":
            return Loss(terms={"policy": -gain.sum() / minibatch.global_decisions})
        metrics = {"ratio": minibatch.mean(torch.full_like(gain, 1.01))} if self.defect == "ratio" else {}
        return Loss(terms={"policy": -minibatch.mean(gain)}, metrics=metrics)


@pytest.mark.parametrize("check", QUICK_CHECKS, ids=lambda c: c.__name__)
def test_the_sound_model_of_the_defects_passes(check):
    check(Broken())


@pytest.mark.parametrize(
    ("defect", "check", "message"),
    [
        ("requires", check_requires_known_capabilities, "unknown capabilities"),
        ("old", check_ratio_is_one_on_the_first_minibatch, "delta log_prob"),
        ("ratio", check_ratio_is_one_on_the_first_minibatch, "ratio 1.0"),
        ("mean", check_gradient_ignores_micro_batches_and_row_order, "micro-batches of 3 rows"),
        ("rows", check_gradient_ignores_micro_batches_and_row_order, "the gradient of"),
        ("mask", check_gradient_ignores_padding, "two masked rows"),
        ("mask", check_masked_decisions_have_no_gradient, "where mask is False"),
        ("sign", check_rewarded_decision_becomes_likelier, "share of the rewarded arm"),
    ],
)
def test_the_checks_catch_a_defect(defect, check, message):
    with pytest.raises(ConformanceError, match=message):
        check(Broken(defect=defect))


def test_the_check_catches_targets_of_another_shape():
    with pytest.raises(ValueError, match=r"target 'advantage': expected \[12, 1\] \+ \[...\], found \[12\]"):
        check_targets_carry_no_gradient(Broken(defect="shape"))


@dataclass(kw_only=True)
class BrokenToy(ToyTask):
    """The toy with one defect."""

    defect: str = ""

    def rollout(self, policy, starts, noise):
        rollout = super().rollout(policy, starts, noise)
        if self.defect == "random":
            rollout.action["action"] = torch.randn_like(rollout.action["action"])
        if self.defect == "group":
            rollout.group = torch.arange(rollout.num_rollouts)
        return rollout

    def score(self, rollout):
        scored = super().score(rollout)
        if self.defect == "silent":
            return replace(scored, reward_terms={})
        if self.defect == "nan":
            return replace(scored, reward=scored.reward / 0 * 0)
        return scored

    def evaluate(self, policy, noise):
        result = super().evaluate(policy, noise)
        if self.defect == "thawed":
            result.metrics["score"] += float(noise.uniform((1,)))
        return result


@pytest.mark.parametrize(
    ("defect", "check", "message"),
    [
        ("random", check_rollout_is_reproducible, "action.action differs"),
        ("random", check_state_round_trip, "after a state round trip differ"),
        ("group", check_rollout_shapes_and_groups, "group sizes"),
        ("silent", check_score_is_finite_and_named, "no reward_terms"),
        ("nan", check_score_is_finite_and_named, "not finite"),
        ("thawed", check_evaluation_is_frozen, "two evaluations of one policy differ"),
    ],
)
def test_the_task_checks_catch_a_defect(defect, check, message):
    with pytest.raises(ConformanceError, match=message):
        check(BrokenToy(defect=defect))
