from dataclasses import replace

import pytest
import torch

from rlflow.toy import ToyTask
from rlflow.trainer import DivergedError
from tests.fakes import Recorder, fit, load, toy_loop, weights

EXACT = 1e-6
REORDERED = 1e-5
"""The same float32 numbers added in another order; Adam's normalised step keeps a part of that."""

KINDS = ["gaussian", "flow", "causal_lm"]
CURVE = [0, 24, 48]


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_the_grid_has_its_points_at_their_samples(tmp_path):
    loop = toy_loop("ppo", tmp_path, "trainer.budget=45", "trainer.num_evaluations=4")
    before = weights(loop)
    scores = []
    judged = loop.task.evaluate

    def evaluate(policy, noise):
        scores.append(all(torch.equal(v, before[f"policy.{k}"]) for k, v in policy.state_dict().items()))
        return judged(policy, noise)

    loop.task.evaluate = evaluate
    fit(loop)
    # 45 samples are 6 iterations of 8: 48 samples, thirds at 16, 32, 48.
    assert [step for step, _ in loop.tracker.curve("eval/score")] == [0, 16, 32, 48]
    # Only point 0 sees the initial weights.
    assert scores == [True, False, False, False]


def test_more_points_than_iterations_give_a_point_per_iteration(tmp_path):
    loop = fit(toy_loop("ppo", tmp_path, "trainer.budget=24", "trainer.num_evaluations=11"))
    assert [step for step, _ in loop.tracker.curve("eval/score")] == [0, 8, 16, 24]


def test_every_iteration_logs_its_stages_at_its_samples(tmp_path):
    loop = fit(toy_loop("flowrl", tmp_path, "update.updates_per_rollout=4", "update.epochs=2"))
    iterations = [(step, m) for step, m in loop.tracker.calls if "loss/balance_loss" in m]
    assert [step for step, _ in iterations] == [8, 16, 24, 32, 40, 48]
    names = set(iterations[0][1])
    assert {"reward/hit", "advantage/soft_value_mean", "loss/weight", "update/grad_norm_actor"} <= names
    # Between evaluations the time axis alone; a point of every cost would be a third of all points.
    assert {"update/grad_norm_partition", "cost/wall_s"} <= names
    assert [name for name in names if name.startswith("cost/")] == ["cost/wall_s"]
    assert {"cost/wall_s", "cost/rollout_s", "cost/update_s"} <= set(loop.tracker.calls[-1][1])
    last = loop.tracker.calls[-1][1]
    # 6 iterations x 4 steps; 6 x 8 decisions
    assert last["cost/optimizer_steps"] == 24.0
    assert last["cost/tokens"] == 48.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ["ppo", "flow_grpo", "fpo", "reinforce_pp"])
def test_the_first_ratio_of_every_iteration_is_one(algorithm, kind, tmp_path):
    loop = fit(toy_loop(algorithm, tmp_path, f"task.kind={kind}", "trainer.budget=24", "update.lr=0.01"))
    errors = [value for _, value in loop.tracker.curve("update/first_ratio_error")]
    assert len(errors) == 3
    assert max(errors) < EXACT
    # The second minibatch sees changed weights, so the mean over both is not 1.
    assert any(abs(value - 1) > EXACT for _, value in loop.tracker.curve("loss/ratio"))


def test_items_of_an_evaluation_are_written_and_handed_over(tmp_path):
    loop = fit(toy_loop("ppo", tmp_path))
    lines = (tmp_path / "samples" / "000000024" / "per_item.csv").read_text().splitlines()
    assert lines[0] == "row,hit"
    # 16 starts x 2 rollouts and the header
    assert len(lines) == 33
    assert loop.tracker.artifacts == [("per_item.csv", "eval")] * 3


class Spoiled(ToyTask):
    """Becomes NaN in the reward (or the score) from a given iteration on."""

    def spoil(self, stage, after):
        self.stage, self.left = stage, after
        return self

    def score(self, rollout):
        scored = super().score(rollout)
        self.left -= self.stage == "reward"
        return replace(scored, reward=scored.reward * float("nan")) if self.left < 0 else scored

    def evaluate(self, policy, noise):
        left, self.left = self.left, 99
        result = super().evaluate(policy, noise)
        self.left = left - (self.stage == "eval")
        if self.left < 0:
            result.metrics["score"] = float("nan")
        return result


@pytest.mark.parametrize(("stage", "after", "samples"), [("reward", 2, 16), ("eval", 1, 24)])
def test_a_number_that_is_not_finite_stops_with_stage_and_samples(stage, after, samples, tmp_path):
    loop = toy_loop("ppo", tmp_path)
    loop.task = Spoiled(**vars(loop.task)).spoil(stage, after)
    with pytest.raises(DivergedError, match=f"{stage}: .* is not finite after {samples} samples") as error:
        fit(loop)
    assert (error.value.stage, error.value.samples) == (stage, samples)


@pytest.mark.parametrize(("stage", "name"), [("advantage", "targets"), ("loss", "loss")])
def test_an_algorithm_that_diverges_is_named_by_its_stage(stage, name, tmp_path):
    loop = toy_loop("ppo", tmp_path)
    original = getattr(loop.algorithm, name)

    def broken(policy, rows):
        answer = original(policy, rows)
        if loop.samples >= 8:
            for tensor in (answer.tensors if name == "targets" else answer.terms).values():
                tensor.data.fill_(float("inf"))
        return answer

    loop.algorithm = type("Broken", (), {name: staticmethod(broken), "row_decisions": 1} | (
        {"loss": loop.algorithm.loss} if name == "targets" else {"targets": loop.algorithm.targets}
    ))()  # fmt: skip
    with pytest.raises(DivergedError) as error:
        fit(loop)
    assert (error.value.stage, error.value.samples) == (stage, 8)


class StopAt(Recorder):
    """Ends the run in the middle: raises when the iteration that ends at `step` logs."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def log(self, metrics, step):
        super().log(metrics, step)
        if step == self.step:
            raise RuntimeError("power cut")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ["flowrl", "fpo"])
def test_a_resumed_run_ends_with_the_same_bits(algorithm, kind, tmp_path):
    settings = [f"task.kind={kind}", "update.ema=0.8", "update.lr=0.01", "update.lr_schedule=linear"]
    whole = fit(toy_loop(algorithm, tmp_path / "whole", *settings))
    with pytest.raises(RuntimeError, match="power cut"):
        fit(toy_loop(algorithm, tmp_path / "cut", *settings, tracker=StopAt(32)))
    checkpoint = load(tmp_path / "cut")
    assert checkpoint["rlflow"]["samples"] == 24
    resumed = toy_loop(algorithm, tmp_path / "cut", *settings)
    resumed.resume(checkpoint)
    fit(resumed)
    assert_same(weights(resumed), weights(whole))
    for found, expected in zip(resumed.averaged.values, whole.averaged.values, strict=True):
        assert torch.equal(found, expected)
    # Nothing before the checkpoint is logged again, and the curve goes on as if nothing had happened.
    assert resumed.tracker.curve("eval/score") == whole.tracker.curve("eval/score")[2:]
    assert [s for s, _ in resumed.tracker.curve("reward/hit")] == [32, 40, 48]
    assert load(tmp_path / "cut")["rlflow"]["evaluations"] == 3
    assert resumed.cost.optimizer_steps == whole.cost.optimizer_steps == 12


def test_seeds_decide_everything(tmp_path):
    first, again, other = (
        fit(toy_loop("ppo", tmp_path, f"trainer.seed={seed}", "update.lr=0.01")) for seed in (0, 0, 1)
    )
    assert_same(weights(first), weights(again))
    assert any(not torch.equal(v, weights(other)[k]) for k, v in weights(first).items())


@pytest.mark.parametrize("kind", ["gaussian", "causal_lm"])
def test_micro_batches_change_nothing_but_memory(tmp_path, kind):
    # A key's bias has no gradient but rounding, of which Adam with its usual epsilon makes whole steps.
    settings = ("update.lr=0.01", "update.eps=1e-3", f"task.kind={kind}", "task.horizon=3")
    parts = ("update.micro_batch=0", "update.micro_batch=3", "update.micro_batch_decisions=7")
    whole, *others = (weights(fit(toy_loop("ppo", tmp_path, *settings, part))) for part in parts)
    for other in others:
        for name, value in whole.items():
            assert torch.allclose(value, other[name], atol=REORDERED), name


def rates(tmp_path, *overrides):
    loop = toy_loop("ppo", tmp_path, "update.lr=0.1", *overrides)
    seen, step = [], loop._optimiser_step

    def watch(part):
        seen.append({g["name"]: g["lr"] for g in loop.optimizers(use_pl_optimizer=False).param_groups})
        return step(part)

    loop._optimiser_step = watch
    fit(loop)
    return seen[:: loop.config.update.updates_per_rollout]


def test_the_linear_schedule_falls_to_its_final_fraction(tmp_path):
    seen = rates(tmp_path, "update.lr_schedule=linear", "update.lr_final_fraction=0.4", "update.critic_lr=1.0")
    # Iterations 0..5 of 6: 1 - k/6 * .6 = 1, .9, .8, .7, .6, .5
    factors = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    assert [r["actor"] for r in seen] == pytest.approx([0.1 * f for f in factors])
    assert [r["critic"] for r in seen] == pytest.approx(factors)


def test_warm_up_rises_over_its_share_of_the_budget(tmp_path):
    # Half of 6 iterations: 1/3, 2/3, 1, then constant.
    seen = rates(tmp_path, "update.warmup_fraction=0.5")
    assert [r["actor"] for r in seen] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.1, 0.1])


def test_the_gradient_norm_is_limited_group_by_group(tmp_path):
    loop = toy_loop("ppo", tmp_path, "update.grad_clip=0.001", "trainer.budget=8", "update.updates_per_rollout=1")
    norms = {}

    def before_step(optimiser, args, kwargs):
        for group in optimiser.param_groups:
            norms[group["name"]] = float(torch.stack([p.grad.norm() for p in group["params"]]).norm())

    configure = loop.configure_optimizers

    def watched():
        optimiser = configure()
        optimiser.register_step_pre_hook(before_step)
        return optimiser

    loop.configure_optimizers = watched
    fit(loop)
    assert norms == pytest.approx({"actor": 0.001, "critic": 0.001}, rel=1000 * EXACT)
    assert loop.tracker.curve("update/grad_norm_critic")[0][1] > 0.001


def test_statistics_of_an_empty_optimiser_batch_do_not_divide_by_zero(tmp_path):
    loop = toy_loop("ppo", tmp_path)
    collected = loop.task.rollout
    loop.task.rollout = lambda *args: replace(r := collected(*args), mask=torch.zeros_like(r.mask))
    loop.task.score = lambda r: replace(r, reward_terms={"hit": r.reward.sum(1)})
    loop.algorithm = replace(loop.algorithm, whiten_advantage=False)
    before = weights(loop)
    fit(loop)
    # Nothing trainable, no gradient: AdamW without decay leaves the weights alone.
    assert_same(weights(loop), before)
