"""The task checks: sound toys pass each, and a toy with one defect fails the check that is about it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch

from rlflow.random import Noise, generator
from rlflow.task import Anchors
from rlflow.testing import ConformanceError, task_checks
from rlflow.testing_tasks import (
    check_anchors_are_finite,
    check_constructor_is_the_configuration,
    check_evaluation_is_frozen,
    check_evaluation_leaves_training_alone,
    check_evaluation_names_score_and_guards,
    check_policy_answers_what_is_required,
    check_ratio_starts_at_one,
    check_rollout_is_reproducible,
    check_rollout_shapes_and_groups,
    check_score_is_finite_and_named,
    check_sizes_divide,
    check_starts_are_disjoint_from_evaluation,
    check_state_round_trip,
)
from rlflow.toy import KINDS, ToyTask

NOT_CHECKED = {"check_starts_are_disjoint_from_evaluation": "evaluation_starts() is None"}


@pytest.mark.parametrize("check", task_checks(), ids=lambda c: c.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_toy_task(kind, check):
    note = check(ToyTask(kind=kind, horizon=3))
    # The toy is judged on all its contexts, and says nothing of a split.
    expected = NOT_CHECKED.get(check.__name__)
    assert note is None if expected is None else note.startswith(expected)


@dataclass(kw_only=True)
class Counting(ToyTask):
    """A toy whose rewards shrink from rollout to rollout, by a counter that it saves."""

    def __post_init__(self):
        self.count = 0

    def starts(self):
        return range(4, 16)

    def evaluation_starts(self) -> Sequence[int] | None:
        return range(4)

    def score(self, rollout):
        self.count += 1
        return super().score(rollout).replace(reward=super().score(rollout).reward / self.count)

    def evaluate(self, policy, noise):
        return ToyTask.evaluate(copy.deepcopy(self), policy, noise)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


@pytest.mark.parametrize("check", task_checks(), ids=lambda c: c.__name__)
def test_a_task_with_state_and_a_split_passes_every_check(check):
    assert check(Counting()) is None


@dataclass(kw_only=True)
class Broken(Counting):
    """The same with one defect."""

    defect: str = ""

    @property
    def policy_kind(self):
        return "gauss" if self.defect == "kind" else super().policy_kind

    @property
    def samples_per_rollout(self):
        return 7 if self.defect == "samples" else super().samples_per_rollout

    @property
    def rows_per_rollout(self):
        return 32 if self.defect == "rows" else 17 if self.defect == "uneven" else super().rows_per_rollout

    @property
    def anchors(self):
        return {
            "infinite": Anchors(base=float("nan"), reference=1.0),
            "reversed": Anchors(base=1.0, reference=0.5),
        }.get(self.defect, super().anchors)

    def starts(self):
        return {"few": range(4, 6), "overlap": range(3, 16), "listed": [15, 2, 3]}.get(self.defect, super().starts())

    def evaluation_starts(self):
        return [] if self.defect == "empty" else super().evaluation_starts()

    def build_policy(self, requires):
        if self.defect == "heads":
            return super().build_policy(requires | {"value"})
        policy = super().build_policy(frozenset() if self.defect == "requires" else requires)
        if self.defect == "column":
            policy.entropy = lambda rollout: torch.zeros(*rollout.mask.shape, 1)
        if self.defect == "row":
            policy.value = lambda rollout: torch.zeros(rollout.num_rollouts)
        if self.defect == "log of 0":
            policy.kl = lambda rollout: torch.full((*rollout.mask.shape, 1), torch.inf)
        return policy

    def rollout(self, policy, starts, noise):
        rollout = super().rollout(policy, starts, noise)
        if self.defect == "random":
            rollout.action["action"] = torch.randn_like(rollout.action["action"])
        if self.defect == "random context":
            rollout.context["observation"] = torch.randn_like(rollout.context["observation"])
        if self.defect == "group":
            rollout.group = torch.arange(rollout.num_rollouts)
        if self.defect == "mask":
            rollout.mask = rollout.mask.float()
        if self.defect == "silent mask":
            rollout.mask = torch.zeros_like(rollout.mask)
        if self.defect == "recorded":
            rollout.action["log_prob"] = rollout.action["log_prob"] + 1e-3
        return rollout

    def score(self, rollout):
        scored = super().score(rollout)
        return {
            "unnamed": lambda: replace(scored, reward_terms={}),
            "nan": lambda: replace(scored, reward=scored.reward / 0 * 0),
            "nan term": lambda: replace(scored, reward_terms={"hit": scored.reward[:, 0] / 0}),
            "term": lambda: replace(scored, reward_terms={"hit": scored.reward}),
            "double": lambda: replace(scored, reward=scored.reward.double()),
            "random reward": lambda: replace(scored, reward=torch.rand_like(scored.reward)),
        }.get(self.defect, lambda: scored)()

    def evaluate(self, policy, noise):
        result = super().evaluate(policy, noise)
        if self.defect in ("thawed", "global"):
            draw = noise.uniform((1,)) if self.defect == "thawed" else torch.rand(1)
            result.metrics["spread"] = float(draw)
        if self.defect == "counts":
            self.count += 1
        if self.defect == "trains":
            next(policy.parameters()).add_(1.0)
        if self.defect == "no score":
            result.metrics["reward"] = result.metrics.pop("score")
        if self.defect == "endless":
            result.metrics["length"] = float("inf")
        return result

    def state_dict(self):
        state = {"forgets": {}, "object": {"count": Noise(generator=generator(0))}}
        return state.get(self.defect, super().state_dict())

    def load_state_dict(self, state):
        self.count = state.get("count", 0)


@pytest.mark.parametrize("check", task_checks(), ids=lambda c: c.__name__)
def test_the_sound_model_of_the_defects_passes(check):
    assert check(Broken()) is None


@pytest.mark.parametrize(
    ("defect", "check", "message"),
    [
        ("kind", check_policy_answers_what_is_required, r"policy_kind is 'gauss', policies has \['causal_lm'"),
        ("heads", check_policy_answers_what_is_required, r"has parameters of \['actor', 'critic'\]"),
        ("requires", check_policy_answers_what_is_required, r"was built for \[\]"),
        ("column", check_policy_answers_what_is_required, r"policy.entropy is \[16, 1, 1\], expected \[16, 1\]"),
        ("row", check_policy_answers_what_is_required, r"policy.value is \[16\], expected \[16, 1\]"),
        ("log of 0", check_policy_answers_what_is_required, "policy.kl is not finite on a trainable decision"),
        ("samples", check_sizes_divide, "samples_per_rollout = 7 is no multiple of 16 rollouts"),
        ("uneven", check_sizes_divide, "rows_per_rollout = 17 is no multiple of 16 rollouts"),
        ("few", check_sizes_divide, "2 starts for 4 groups per rollout"),
        ("overlap", check_starts_are_disjoint_from_evaluation, r"1 of 4 evaluation starts are training .*: \[3\]"),
        ("listed", check_starts_are_disjoint_from_evaluation, r"2 of 4 evaluation starts are training .*: \[2, 3\]"),
        ("empty", check_starts_are_disjoint_from_evaluation, "evaluation_starts.. is empty"),
        ("group", check_rollout_shapes_and_groups, "group sizes"),
        ("mask", check_rollout_shapes_and_groups, "rollout.mask: expected bool"),
        ("silent mask", check_rollout_shapes_and_groups, "no decision is trainable"),
        ("double", check_rollout_shapes_and_groups, "rollout.reward is torch.float64"),
        ("rows", check_rollout_shapes_and_groups, "16 rows, but rows_per_rollout says 32"),
        ("random", check_rollout_is_reproducible, "action.action differs between two runs"),
        ("random context", check_rollout_is_reproducible, "context.observation differs between two runs"),
        ("random reward", check_rollout_is_reproducible, "reward differs between two runs"),
        ("unnamed", check_score_is_finite_and_named, "no reward_terms"),
        ("nan", check_score_is_finite_and_named, "rewards are not finite"),
        ("nan term", check_score_is_finite_and_named, r"reward_terms\['hit'\] is not finite"),
        ("term", check_score_is_finite_and_named, r"reward_terms\['hit'\] is \[16, 1\], expected \[16\]"),
        ("forgets", check_state_round_trip, "reward differs after a state round trip"),
        ("object", check_state_round_trip, "cannot be read from a checkpoint"),
        ("thawed", check_evaluation_is_frozen, r"two evaluations of one policy differ in \['spread'\]"),
        ("global", check_evaluation_is_frozen, r"two evaluations of one policy differ in \['spread'\]"),
        ("counts", check_evaluation_leaves_training_alone, "reward differs after an evaluation"),
        ("trains", check_evaluation_leaves_training_alone, r"evaluate\(\) changes \['actor"),
        ("no score", check_evaluation_names_score_and_guards, "no 'score'"),
        ("endless", check_evaluation_names_score_and_guards, r"metrics \['length'\] are not finite"),
        ("infinite", check_anchors_are_finite, "anchors.base = nan"),
        ("reversed", check_anchors_are_finite, "anchors.base = 1.0, anchors.reference = 0.5"),
    ],
)
def test_a_defect_fails_the_check_that_is_about_it(defect, check, message):
    with pytest.raises(ConformanceError, match=message):
        check(Broken(defect=defect))


def test_a_recorded_likelihood_that_replay_does_not_give():
    with pytest.raises(ConformanceError, match=r"\|delta log_prob\| = 0.001 between sampling and replay"):
        check_ratio_starts_at_one(Broken(kind="flow", defect="recorded"))


def test_a_guard_that_is_no_metric(monkeypatch):
    monkeypatch.setattr(Counting, "guards", ("diversity",))
    with pytest.raises(ConformanceError, match=r"guards \['diversity'\] are not among the metrics"):
        check_evaluation_names_score_and_guards(Counting())


def test_a_unit_that_does_not_count_rollouts(monkeypatch):
    monkeypatch.setattr(Counting, "samples_per_rollout", 32)
    with pytest.raises(ConformanceError, match="samples_per_rollout = 32 with 16 rollouts"):
        check_sizes_divide(Counting())
    monkeypatch.setattr(Counting, "unit", "env_steps")
    assert check_sizes_divide(Counting()) is None
    monkeypatch.setattr(Counting, "unit", "images")
    with pytest.raises(ConformanceError, match="unit is 'images'"):
        check_sizes_divide(Counting())


class Undecorated(ToyTask):
    extra: int = 1


@dataclass(kw_only=True)
class Untyped(ToyTask):
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@pytest.mark.parametrize(("kind", "words"), [(Undecorated, "not a dataclass of its own"), (Untyped, "cannot be read")])
def test_settings_that_are_no_configuration(kind, words):
    with pytest.raises(ConformanceError, match=words):
        check_constructor_is_the_configuration(kind())
