import pytest
import torch

from rlflow.config import resolve
from rlflow.refill import join, refilled, teaching_rows
from rlflow.settings import ConfigError
from tests.fakes import TOY, block, fit, load, toy_loop, weights
from tests.test_trainer import StopAt

GROUPS = torch.tensor([0, 0, 1, 1])
LM = ["task.kind=causal_lm", "task.horizon=3", "update.lr=0.01"]


def numbered(first, rewards, **changes):
    """Four rows of two decisions whose context, action and likelihoods name the row."""
    rows = torch.arange(first, first + 4.0)
    leaves = {"context": {"p": rows[:, None]}, "action": {"a": rows[:, None].expand(4, 2)}}
    reward = torch.stack([torch.zeros(4), torch.tensor(rewards)], dim=1).tolist()
    values = {"group": GROUPS, "reward_terms": {"hit": torch.tensor(rewards)}, "metrics": {"length": float(first)}}
    return block(reward, **(leaves | values | changes))


def test_a_group_teaches_where_its_returns_differ():
    mask = torch.tensor([[True, True], [True, True], [True, False], [True, True]])
    # Group 1: the second decision of row 2 is masked, so that both members return 1.
    rollout = block([[1, 0], [0, 0], [1, 5], [0, 1]], group=GROUPS, mask=mask)
    assert teaching_rows(rollout).tolist() == [True, True, False, False]
    # When the rewards come does not matter.
    assert teaching_rows(block([[1, 0], [0, 1]])).tolist() == [False, False]


def test_silent_groups_make_room_for_later_ones():
    later = [numbered(4, [1.0, 1.0, 0.0, 0.0]), numbered(8, [1.0, 0.0, 1.0, 0.0])]
    found, rounds = refilled(numbered(0, [0.0, 1.0, 0.0, 0.0]), lambda n: later[n - 1], limit=5)
    # Rows 0, 1 teach; the second rollout has none, the third 8-11, of which two are wanted.
    assert rounds == 3
    assert found.context["p"][:, 0].tolist() == [0, 1, 8, 9]
    assert found.action["a"][:, 1].tolist() == [0, 1, 8, 9]
    assert found.reward[:, 1].tolist() == [0, 1, 1, 0]
    # Of all twelve: 6 are silent, 8 thrown away; 5 hit; lengths 0, 4, 8.
    assert found.metrics == pytest.approx(
        {"length": 4.0, "collected": 3.0, "discarded_fraction": 8 / 12, "silent_fraction": 0.5}
    )
    assert float(found.reward_terms["hit"].mean()) == pytest.approx(5 / 12)


def test_the_limit_leaves_the_earliest_silent_groups_in():
    found, rounds = refilled(
        numbered(0, [0.0, 0.0, 1.0, 0.0]), lambda n: numbered(4 * n, [1.0, 1.0, 1.0, 1.0]), limit=2
    )
    assert rounds == 3
    assert found.context["p"][:, 0].tolist() == [0, 1, 2, 3]


def test_nothing_is_collected_where_all_groups_teach():
    found, rounds = refilled(numbered(0, [0.0, 1.0, 1.0, 0.0]), lambda _: pytest.fail("not needed"), limit=5)
    assert rounds == 1
    assert found.metrics["discarded_fraction"] == 0.0


def test_joined_prompts_are_padded_at_the_front_and_completions_at_the_end():
    short = block([[1.0]], context={"prompt": torch.tensor([[7]])}, action={"token": torch.tensor([[5]])})
    long = block(
        [[0.0, 2.0]], context={"prompt": torch.tensor([[8, 9]])}, action={"token": torch.tensor([[3, 4]])},
        sampler_log_prob=torch.zeros(1, 2, 1),
    )  # fmt: skip
    found = join([short, long], torch.tensor([0, 1]))
    assert found.context["prompt"].tolist() == [[0, 7], [8, 9]]
    assert found.action["token"].tolist() == [[5, 0], [3, 4]]
    assert found.mask.tolist() == [[True, False], [True, True]]
    assert found.boundary.tolist() == [[True, False], [False, True]]
    # Likelihoods of some rows alone are of no use.
    assert found.sampler_log_prob is None
    both = join([long, long], torch.tensor([1]))
    assert both.sampler_log_prob.shape == (1, 2, 1)


def test_open_boundaries_keep_their_next_contexts():
    def part(first, ends):
        open_end = torch.tensor(ends)
        contexts = torch.arange(first, first + float(open_end.sum()))[:, None, None]
        return block(
            [[0.0, 0.0]] * 2, context={"o": torch.zeros(2, 2, 1)}, decisions_independent=True,
            terminated=torch.zeros(2, 2, dtype=torch.bool), boundary=open_end,
            boundary_context={"o": contexts} if open_end.any() else None,
        )  # fmt: skip

    one, none = part(0, [[True, True], [False, True]]), part(9, [[False, False], [False, False]])
    two = part(3, [[False, True], [True, False]])
    found = join([one, none, two], torch.tensor([1, 2, 5]))
    # Row 1 has context 2, row 2 of `none` none, row 5 the second of `two`.
    assert found.boundary_context["o"].flatten().tolist() == [2.0, 4.0]


def watched(loop):
    """The loop, with a list of the starts of all rollouts that it collects."""
    seen, rollout = [], loop.task.rollout

    def watch(policy, starts, noise):
        if starts.shape[0] == loop.task.groups_per_rollout:
            seen.append(starts.tolist())
        return rollout(policy, starts, noise)

    loop.task.rollout = watch
    return loop, seen


def test_a_run_with_refills_takes_later_starts_and_ends_at_its_budget(tmp_path):
    loop, seen = watched(toy_loop("flow_grpo", tmp_path, *LM, "update.refill=2", "trainer.num_evaluations=2"))
    fit(loop)
    counts = [value for _, value in loop.tracker.curve("rollout/collected")]
    # Groups of two are often silent, so that some iterations collect more than one rollout.
    assert max(counts) > 1
    # Six rollouts of eight samples are the budget of 48, whatever they were used for.
    assert sum(counts) == 6
    assert loop.iteration == len(counts) < 6
    assert [step for step, _ in loop.tracker.curve("eval/score")] == [0, 48]
    steps = [step for step, _ in loop.tracker.curve("rollout/collected")]
    assert steps == [8 * sum(counts[: i + 1]) for i in range(len(counts))]
    plain, expected = watched(toy_loop("flow_grpo", tmp_path / "plain", *LM))
    fit(plain)
    assert seen == expected
    # Thrown away or not, every rollout has its cost.
    assert loop.tracker.calls[-1][1]["cost/tokens"] > 0.8 * plain.tracker.calls[-1][1]["cost/tokens"]
    assert max(value for _, value in loop.tracker.curve("update/first_ratio_error")) < 1e-6


@pytest.mark.parametrize("kind", ["causal_lm", "flow", "gaussian"])
def test_a_resumed_run_with_refills_ends_with_the_same_bits(kind, tmp_path):
    settings = [f"task.kind={kind}", "update.lr=0.01", "update.refill=2", "update.lr_schedule=linear"]
    settings += ["trainer.budget=96", "trainer.num_evaluations=13"]
    whole = fit(toy_loop("flow_grpo", tmp_path / "whole", *settings))
    steps = [step for step, _ in whole.tracker.curve("rollout/collected")]
    with pytest.raises(RuntimeError, match="power cut"):
        fit(toy_loop("flow_grpo", tmp_path / "cut", *settings, tracker=StopAt(steps[2])))
    resumed = toy_loop("flow_grpo", tmp_path / "cut", *settings)
    resumed.resume(load(tmp_path / "cut"))
    fit(resumed)
    assert resumed.tracker.curve("rollout/collected") == whole.tracker.curve("rollout/collected")[2:]
    assert (resumed.iteration, resumed.collected) == (whole.iteration, whole.collected)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_a_checkpoint_from_before_refills_counts_its_iterations(tmp_path):
    fit(toy_loop("flow_grpo", tmp_path, "trainer.budget=24"))
    checkpoint = load(tmp_path)
    del checkpoint["rlflow"]["collected"], checkpoint["rlflow"]["controls"]
    loop = toy_loop("flow_grpo", tmp_path, "trainer.budget=24")
    loop.resume(checkpoint)
    assert (loop.samples, loop.is_done) == (24, True)


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [("ppo", []), ("flowrl", []), ("flow_grpo", ["algorithm.credit=to_go"]), ("reinforce_pp", []), ("fpo", [])],
)
def test_algorithms_that_learn_from_silent_groups_are_refused(algorithm, settings):
    with pytest.raises(ConfigError, match=r"update\.refill: expected 0, found 3: .* also learns from groups"):
        resolve(algorithm, "toy", [*TOY, "update.refill=3", *settings])


def test_a_negative_number_of_refills_is_refused():
    with pytest.raises(ConfigError, match=r"update\.refill: expected 0 \(off\) or a number of rollouts, found -1"):
        resolve("flow_grpo", "toy", [*TOY, "update.refill=-1"])


def test_the_groups_baseline_of_another_algorithm_may_be_refilled(tmp_path):
    loop = fit(toy_loop("fpo", tmp_path, "algorithm.baseline=group", "update.refill=1"))
    assert loop.collected == 6
