"""Each option of the policy term and of the KL, through the whole loop on a toy policy that can answer it."""

import pytest
import torch

from rlflow.config import resolve
from rlflow.policy import MissingCapabilityError
from rlflow.settings import ConfigError
from tests.fakes import TOY, fit, toy_loop, weights

EXACT = 1e-6
RATIO = ["flow_grpo", "ppo", "reinforce_pp"]
KINDS = ["gaussian", "flow", "causal_lm"]


def run(algorithm, kind, folder, *settings):
    horizon = 3 if kind == "causal_lm" else 1
    sizes = [f"task.kind={kind}", f"task.horizon={horizon}", "update.lr=0.01", "trainer.budget=32"]
    loop = toy_loop(algorithm, folder, *sizes, *settings)
    before = weights(loop)
    fit(loop)
    assert any(not torch.equal(value, before[name]) for name, value in weights(loop).items())
    assert max(value for _, value in loop.tracker.curve("update/first_ratio_error")) < EXACT
    return loop


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (["ratio=sequence", "aggregation=sequence"], KINDS),
        (["ratio=sequence_token"], KINDS),
        (["aggregation=constant", "horizon=3"], KINDS),
        (["dual_clip=3.0"], KINDS),
        (["trust_region=divergence", "divergence_limit=1e-4"], ["gaussian", "flow"]),
        (["ratio_norm=true", "step_weight=inverse_dt"], ["flow"]),
    ],
    ids="+".join,
)
@pytest.mark.parametrize("algorithm", RATIO)
def test_options_of_the_policy_term(algorithm, options, kinds, tmp_path):
    for kind in kinds:
        loop = run(algorithm, kind, tmp_path / kind, *(f"algorithm.surrogate.{option}" for option in options))
        assert len(loop.tracker.curve("loss/clip_fraction")) == 4


@pytest.mark.parametrize("algorithm", RATIO)
def test_the_options_reach_the_updates(algorithm, tmp_path):
    plain, other = (
        run(algorithm, "causal_lm", tmp_path / name, f"algorithm.surrogate.ratio={name}")
        for name in ("token", "sequence")
    )
    assert any(not torch.equal(value, weights(plain)[name]) for name, value in weights(other).items())


@pytest.mark.parametrize("algorithm", ["flow_grpo", "ppo"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("where", "estimator"), [("loss", "k2"), ("loss", "k3"), ("reward", "k1"), ("reward", "exact")]
)
def test_estimators_of_the_kl(algorithm, kind, where, estimator, tmp_path):
    weight = "beta" if algorithm == "flow_grpo" else "kl_weight"
    settings = [f"{weight}=0.1", f"kl_in={where}", f"kl.estimator={estimator}"]
    loop = run(algorithm, kind, tmp_path, *(f"algorithm.{setting}" for setting in settings))
    name = "loss/ref_kl" if where == "loss" else "advantage/ref_kl"
    assert len(loop.tracker.curve(name)) == 4


@pytest.mark.parametrize("algorithm", RATIO)
def test_the_samplers_weight_where_an_engine_gives_its_log_probs(algorithm, tmp_path):
    loop = toy_loop(algorithm, tmp_path, "algorithm.surrogate.sampler_weight_cap=2", "trainer.budget=16")
    score = loop.task.score

    def scored(rollout):
        rollout = score(rollout)
        if rollout.old_log_prob is None:
            return rollout
        # An engine that thinks every other rollout e^1 or e^-.5 less likely than the trainer does.
        shift = torch.tensor([1.0, -0.5]).repeat(rollout.num_rollouts // 2)[:, None, None]
        return rollout.replace(sampler_log_prob=rollout.old_log_prob - shift)

    loop.task.score = scored
    fit(loop)
    # (2 + e^-.5)/2 = (2 + .606531)/2
    assert [value for _, value in loop.tracker.curve("loss/sampler_weight")] == pytest.approx([1.303265] * 2, abs=EXACT)


def test_the_samplers_weight_without_an_engine_is_refused(tmp_path):
    loop = toy_loop("flow_grpo", tmp_path, "algorithm.surrogate.sampler_weight_cap=2")
    with pytest.raises(ValueError, match=r"expected rollout\.sampler_log_prob of a rollout engine, found none"):
        fit(loop)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["algorithm.surrogate.ratio=tokens"], "algorithm.surrogate.ratio"),
        (["algorithm.surrogate.dual_clip=1"], r"surrogate\.dual_clip: expected 0 \(off\) or above 1"),
        (["algorithm.surrogate.aggregation=constant"], r"surrogate\.horizon: .* e\.g\. horizon=32"),
        (["algorithm.surrogate.dualclip=3"], r"unknown key 'algorithm\.surrogate\.dualclip'.*dual_clip"),
        (["algorithm.beta=0.1", "algorithm.kl.estimator=k1"], r"set kl\.estimator=k2, or kl_in=reward"),
    ],
)
def test_options_are_checked_before_any_work(settings, words):
    with pytest.raises(ConfigError, match=words):
        resolve("flow_grpo", "toy", [*TOY, *settings])


@pytest.mark.parametrize(
    ("option", "missing"), [("ratio_norm=true", "divergence"), ("step_weight=inverse_dt", "steps")]
)
def test_a_policy_without_the_capability_is_named(option, missing):
    with pytest.raises(MissingCapabilityError, match=f"it requires .*'{missing}'.* which policy CausalLMPolicy"):
        resolve("flow_grpo", "toy", [*TOY, "task.kind=causal_lm", f"algorithm.surrogate.{option}"])
