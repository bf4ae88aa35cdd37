"""Public conformance checks of tasks; use them through `rlflow.testing.task_checks`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlflow.conformance import (
    ConformanceError,
    demand,
    demand_configuration,
    demand_same,
    scored_rollout,
    through_file,
)
from rlflow.policy import Policy, capabilities
from rlflow.random import Noise, generator
from rlflow.registry import find
from rlflow.rollout import Rollout, assert_shapes
from rlflow.task import Evaluation, Task

CLOSE = 2e-5
UNITS = ("rollouts", "env_steps")

TaskCheck = Callable[[Task], str | None]


def task_checks() -> list[TaskCheck]:
    """Checks that take a small instance of a task (a few groups, short rollouts).

    A check returns None, or why this task gives no means to make it.
    """
    return [
        check_constructor_is_the_configuration,
        check_policy_answers_what_is_required,
        check_sizes_divide,
        check_starts_are_disjoint_from_evaluation,
        check_rollout_shapes_and_groups,
        check_rollout_is_reproducible,
        check_ratio_starts_at_one,
        check_score_is_finite_and_named,
        check_state_round_trip,
        check_evaluation_is_frozen,
        check_evaluation_leaves_training_alone,
        check_evaluation_names_score_and_guards,
        check_anchors_are_finite,
    ]


def check_constructor_is_the_configuration(task: Task) -> None:
    """Settings are the fields of a dataclass, of types that a configuration can hold."""
    demand_configuration(task)


def check_policy_answers_what_is_required(task: Task) -> None:
    """The policy is of the kind that the task names, has the heads asked for and no other, and answers in shape."""
    offered = _offered(task)
    bare = sorted(_policy(task, frozenset()).parameter_groups())
    demand(
        bare == ["actor"],
        f"build_policy(frozenset()) has parameters of {bare}",
        "build critic and partition only where `requires` names value and partition",
    )
    policy = _policy(task, offered)
    demand(
        policy.requires == offered,
        f"the policy was asked for {sorted(offered)} and was built for {sorted(policy.requires)}",
        "pass build_policy's `requires` on to the constructor of the policy",
    )
    rollout = scored_rollout(task, policy, seed=0)
    for name in sorted(offered):
        for method, x in _answers(policy, rollout, name).items():
            _demand_answer(method, x, rollout)


def check_sizes_divide(task: Task) -> None:
    """Rollouts are a whole number of groups, and samples and rows a whole number of rollouts."""
    num_rollouts, starts = task.groups_per_rollout * task.group_size, len(task.starts())
    demand(
        num_rollouts >= 1,
        f"groups_per_rollout = {task.groups_per_rollout}, group_size = {task.group_size}",
        "set both to at least 1",
    )
    demand(task.unit in UNITS, f"unit is {task.unit!r}", f"set it to one of {UNITS}")
    demand(
        starts >= task.groups_per_rollout,
        f"{starts} starts for {task.groups_per_rollout} groups per rollout",
        "offer more starts or lower groups_per_rollout",
    )
    for name in ("samples_per_rollout", "rows_per_rollout"):
        value = getattr(task, name)
        demand(
            value > 0 and value % num_rollouts == 0,
            f"{name} = {value} is no multiple of {num_rollouts} rollouts",
            "derive it from groups_per_rollout * group_size",
        )
    demand(
        task.unit != "rollouts" or task.samples_per_rollout == num_rollouts,
        f"samples_per_rollout = {task.samples_per_rollout} with {num_rollouts} rollouts",
        "a sample of unit 'rollouts' is one rollout; count steps under unit 'env_steps'",
    )


def check_starts_are_disjoint_from_evaluation(task: Task) -> str | None:
    """No training start belongs to the evaluation set, where `evaluation_starts` says which those are."""
    held_out = task.evaluation_starts()
    if held_out is None:
        return "evaluation_starts() is None: overlap with starts() cannot be seen; test the split beside the task"
    starts = task.starts()
    # A range answers at once; the set of one with 2**31 seeds would not fit into memory.
    training = starts if isinstance(starts, range) else frozenset(starts)
    both = [start for start in held_out if start in training]
    demand(len(held_out) > 0, "evaluation_starts() is empty", "hold some starts out")
    demand(
        not both,
        f"{len(both)} of {len(held_out)} evaluation starts are training starts: {both[:5]}",
        "leave them out of starts()",
    )
    return None


def check_rollout_shapes_and_groups(task: Task) -> None:
    """The block has the documented shapes and `group_size` rows per start."""
    _, rollout = _task_rollout(task)
    try:
        assert_shapes(rollout)
    except ValueError as error:
        raise ConformanceError(str(error), "see the axis legend of rlflow/rollout.py") from error
    demand(rollout.reward.dtype == torch.float32, f"rollout.reward is {rollout.reward.dtype}", "return float32 rewards")
    demand(bool(rollout.mask.any()), "no decision is trainable", "mask is True where a decision is trained")
    counts = torch.unique(rollout.group, return_counts=True)[1]
    demand(
        bool((counts == task.group_size).all()),
        f"group sizes {counts.tolist()}, expected {task.group_size} each",
        "repeat every start group_size times, and give its rows one id in `group`",
    )
    total = rollout.num_rollouts * (rollout.mask.shape[1] if rollout.decisions_independent else 1)
    demand(
        total == task.rows_per_rollout,
        f"{total} rows, but rows_per_rollout says {task.rows_per_rollout}",
        "rows are decisions where decisions_independent, else rollouts",
    )


def check_rollout_is_reproducible(task: Task) -> None:
    """The same seed gives the same block from a fresh copy of the task, whatever torch's global generator does."""
    first, second = (_task_rollout(copy.deepcopy(task), global_seed=seed)[1] for seed in (1, 2))
    demand_same(first, second, "between two runs from one seed", "draw every random number from rollout()'s `noise`")


def check_ratio_starts_at_one(task: Task) -> str | None:
    """Likelihoods that the sampler recorded are those of a replay, so that the ratio of the first update is 1."""
    policy, rollout = _task_rollout(task)
    if rollout.old_log_prob is None:
        return "the policy offers no log_prob"
    with torch.no_grad():
        error = float((policy.log_prob(rollout) - rollout.old_log_prob)[rollout.mask].abs().max())
    demand(
        error <= CLOSE,
        f"|delta log_prob| = {error:.3g} between sampling and replay",
        "store context and action as the policy saw and gave them; nothing random (dropout) in the policy",
    )
    return None


def check_score_is_finite_and_named(task: Task) -> None:
    """Rewards are finite on trainable decisions and their components are logged."""
    _, rollout = _task_rollout(task)
    fix = "raise where a reward cannot be computed"
    demand(bool(torch.isfinite(rollout.reward).all()), "rewards are not finite", fix)
    demand(bool(rollout.reward_terms), "score() filled no reward_terms", "name at least one component of the reward")
    for name, x in rollout.reward_terms.items():
        demand(
            x.shape == rollout.group.shape,
            f"reward_terms[{name!r}] is {list(x.shape)}, expected [{rollout.num_rollouts}]",
            "give one number per rollout, e.g. reward.sum(1)",
        )
        demand(bool(torch.isfinite(x).all()), f"reward_terms[{name!r}] is not finite", fix)


def check_state_round_trip(task: Task) -> None:
    """A rollout after `load_state_dict` equals the one that would have followed, also through a checkpoint file."""
    original = copy.deepcopy(task)
    policy, _ = _task_rollout(original)
    state = through_file(original.state_dict())
    following = scored_rollout(original, policy, seed=1)
    restored = copy.deepcopy(task)
    restored.load_state_dict(state)
    again = scored_rollout(restored, policy, seed=1)
    demand_same(following, again, "after a state round trip", "state_dict() has to hold all that outlives a rollout")


def check_evaluation_is_frozen(task: Task) -> None:
    """Two evaluations of one policy agree in every metric, whatever generator they are given."""
    policy, _ = _task_rollout(task)
    first, second = (_evaluation(task, policy, seed).metrics for seed in (1, 2))
    differing = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    demand(
        not differing,
        f"two evaluations of one policy differ in {differing}",
        "evaluate with a generator of a fixed seed; use only the device of `noise`",
    )


def check_evaluation_leaves_training_alone(task: Task) -> None:
    """The rollout after an evaluation is the one that would have followed without it, and the policy is as it was."""
    plain, judged = copy.deepcopy(task), copy.deepcopy(task)
    policy, _ = _task_rollout(plain)
    expected = scored_rollout(plain, policy, seed=1)
    policy, _ = _task_rollout(judged)
    before = copy.deepcopy(policy.state_dict())
    _evaluation(judged, policy, seed=1)
    changed = [name for name, x in policy.state_dict().items() if not torch.equal(x, before[name])]
    demand(not changed, f"evaluate() changes {changed[:3]} of the policy", "change no weight and no statistic there")
    found = scored_rollout(judged, policy, seed=1)
    demand_same(expected, found, "after an evaluation", "give evaluate() environments and counters of its own")


def check_evaluation_names_score_and_guards(task: Task) -> None:
    """An evaluation has a `score` and the guards among its metrics, all finite."""
    policy, _ = _task_rollout(task)
    metrics = _evaluation(task, policy, seed=1).metrics
    demand("score" in metrics, f"evaluate() gives {sorted(metrics)}, no 'score'", "name the ranked metric 'score'")
    unknown = [name for name in task.guards if name not in metrics]
    demand(
        not unknown,
        f"guards {unknown} are not among the metrics of evaluate(): {sorted(metrics)}",
        "return them, or take them out of `guards`",
    )
    broken = [name for name, value in metrics.items() if not math.isfinite(value)]
    demand(not broken, f"metrics {broken} are not finite", "leave out a metric that cannot be computed")


def check_anchors_are_finite(task: Task) -> None:
    """The anchors are finite and the reference lies above the base."""
    base, reference = task.anchors.base, task.anchors.reference
    demand(
        math.isfinite(base) and math.isfinite(reference) and reference > base,
        f"anchors.base = {base}, anchors.reference = {reference}",
        "base: measured score of the untrained policy; reference: a higher score, that counts as 1",
    )


def _offered(task: Task) -> frozenset[str]:
    kind = task.policy_kind
    demand(kind in task.policies, f"policy_kind is {kind!r}, policies has {sorted(task.policies)}", "name one of them")
    return capabilities(find("policy", task.policies[kind]).load())


def _policy(task: Task, requires: frozenset[str]) -> Policy:
    torch.manual_seed(0)
    return task.build_policy(requires).eval()


def _task_rollout(task: Task, global_seed: int = 0) -> tuple[Policy, Rollout]:
    policy = _policy(task, _offered(task) & {"log_prob"})
    torch.manual_seed(global_seed)
    return policy, scored_rollout(task, policy, seed=0)


@torch.no_grad()
def _evaluation(task: Task, policy: Policy, seed: int) -> Evaluation:
    torch.manual_seed(seed)
    return task.evaluate(policy, Noise(generator=generator(seed, "eval")))


@torch.no_grad()
def _answers(policy: Policy, rollout: Rollout, capability: str) -> dict[str, Tensor]:
    if capability == "reference":
        return {"kl": policy.kl(rollout), "ref_log_prob": policy.ref_log_prob(rollout)}
    if capability == "divergence":
        return {"divergence": policy.divergence(rollout, policy.moments(rollout))}
    if capability == "steps":
        return {"step_std": policy.step_std(rollout), "step_length": policy.step_length(rollout)}
    method = "log_partition" if capability == "partition" else capability
    return {method: getattr(policy, method)(rollout)}


def _demand_answer(method: str, x: Tensor, rollout: Rollout) -> None:
    b, t = rollout.mask.shape
    once = method == "log_partition" and not rollout.decisions_independent
    lead = (b, 1) if once else (b, t)
    refined = method not in ("value", "entropy", "log_partition")
    demand(
        x.shape[:2] == lead and x.ndim == 2 + refined,
        f"policy.{method} is {list(x.shape)}, expected {[*lead, '...'] if refined else list(lead)}",
        "see the protocols of rlflow/policy.py",
    )
    trained = rollout.mask.any(dim=1, keepdim=True) if once else rollout.mask
    demand(
        bool(torch.isfinite(x[trained]).all()),
        f"policy.{method} is not finite on a trainable decision",
        "look for a logarithm of 0 or a standard deviation of 0",
    )
