"""The invariants of every pair: each algorithm and its variants, on every policy kind that it can use."""

from dataclasses import dataclass, field

import pytest
import torch

from algorithms.flow_grpo import FlowGrpo
from algorithms.flowrl import FlowRL
from algorithms.fpo import Fpo
from algorithms.ppo import Ppo
from algorithms.reinforce_pp import ReinforcePP
from rlflow.algorithm import Algorithm, Loss
from rlflow.kl_penalty import KlPenalty
from rlflow.registry import entries, find
from rlflow.rollout import Targets
from rlflow.surrogate import Surrogate
from rlflow.testing import (
    ConformanceError,
    algorithm_checks,
    check_constructor_is_the_configuration,
    check_gradient_ignores_micro_batches_and_row_order,
    check_gradient_ignores_padding,
    check_masked_decisions_have_no_gradient,
    check_ratio_is_one_on_the_first_minibatch,
    check_requires_known_capabilities,
    check_rewarded_decision_becomes_likelier,
    check_targets_carry_no_gradient,
    usable_kinds,
)
from rlflow.toy import KINDS

CHECKS = algorithm_checks()
QUICK_CHECKS = [c for c in CHECKS if c is not check_rewarded_decision_becomes_likelier]

GUARD = FlowGrpo(surrogate=Surrogate(ratio_norm=True, step_weight="inverse_dt"))
DIVERGENCE = FlowGrpo(surrogate=Surrogate(trust_region="divergence", divergence_limit=0.01))
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
    FlowGrpo(beta=0.1, kl=KlPenalty(estimator="k3")),
    FlowGrpo(beta=0.1, kl_in="reward"),
    FlowGrpo(surrogate=Surrogate(ratio="sequence", aggregation="sequence")),
    FlowGrpo(surrogate=Surrogate(ratio="sequence_token", dual_clip=3.0)),
    FlowGrpo(scale="none", surrogate=Surrogate(aggregation="constant", horizon=4)),
    GUARD,
    DIVERGENCE,
    Ppo(clip_high=0.28, surrogate=Surrogate(aggregation="sequence", dual_clip=3.0), entropy_weight=0.01),
    ReinforcePP(surrogate=Surrogate(ratio="sequence_token"), clip_high=0.28),
]
LEARNING = [
    GUARD,
    DIVERGENCE,
    FlowGrpo(surrogate=Surrogate(ratio="sequence", aggregation="sequence")),
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
    # Step sizes are the flow's alone; a closed form of the divergence needs Gaussian steps.
    assert usable_kinds(GUARD) == ["flow"]
    assert usable_kinds(DIVERGENCE) == ["gaussian", "flow"]


@dataclass(frozen=True, kw_only=True)
class Broken(Algorithm):
    """REINFORCE with one defect, to see that the checks bite."""

    defect: str = ""

    @property
    def requires(self):
        return frozenset({"requires": {"logprob"}, "entropy": {"log_prob", "entropy"}}.get(self.defect, {"log_prob"}))

    def targets(self, policy, rollout):
        if self.defect == "zero":
            rollout = rollout.replace(reward=rollout.reward / 0)
        if self.defect == "old":
            rollout.old_log_prob = rollout.old_log_prob + 1e-4
        sign = -1.0 if self.defect == "sign" else 1.0
        advantage = sign * (rollout.reward.sum(1, keepdim=True) - 0.5).expand_as(rollout.reward)
        if self.defect == "gradient":
            advantage = advantage.clone().requires_grad_()
        return Targets(tensors={"advantage": advantage[:, 0] if self.defect == "shape" else advantage})

    def loss(self, policy, minibatch):
        gain = policy.log_prob(minibatch).sum(-1) * minibatch.targets["advantage"]
        if self.defect == "mean":
            return Loss(terms={"policy": -gain.mean()})
        if self.defect == "rows":
            return Loss(terms={"policy": -minibatch.mean(gain * torch.arange(gain.shape[0])[:, None])})
        if self.defect == "mask":
            return Loss(terms={"policy": -gain.sum() / minibatch.global_decisions})
        if self.defect == "constant":
            gain = gain.detach() + 0.0 * gain
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
        ("zero", check_targets_carry_no_gradient, "target advantage is not finite"),
        ("mean", check_gradient_ignores_micro_batches_and_row_order, "micro-batches of 3 rows"),
        ("rows", check_gradient_ignores_micro_batches_and_row_order, "the gradient of"),
        ("constant", check_gradient_ignores_micro_batches_and_row_order, "the gradient is 0.0"),
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


def test_the_check_catches_targets_with_a_gradient():
    with pytest.raises(ValueError, match="target 'advantage' carries a gradient"):
        check_targets_carry_no_gradient(Broken(defect="gradient"))


def test_the_check_catches_what_no_policy_offers(monkeypatch):
    monkeypatch.setattr("rlflow.testing.KINDS", ("flow",))
    with pytest.raises(ConformanceError, match=r"no policy offers all of \['entropy', 'log_prob'\]"):
        check_requires_known_capabilities(Broken(defect="entropy"))


class Undecorated(Broken):
    beta: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Untyped(Broken):
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True, kw_only=True)
class Unset(Broken):
    beta: float


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        (Undecorated(), "not a dataclass of its own"),
        (Untyped(), "cannot be read from a configuration"),
        (Unset(beta=0.1), r"fields \['beta'\] have no default"),
    ],
)
def test_settings_that_are_no_configuration(algorithm, words):
    with pytest.raises(ConformanceError, match=words):
        check_constructor_is_the_configuration(algorithm)
