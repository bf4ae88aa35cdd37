import pytest
import torch

from rlflow.rollout import Targets, assert_shapes, flatten_targets, minibatch
from tests.fakes import block, part

ROUNDED = 1e-6


def flags(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def independent(**changes):
    values = {
        "context": {"o": torch.arange(8.0).view(2, 4, 1)},
        "action": {"a": torch.arange(8.0).view(2, 4)},
        "group": torch.tensor([3, 7]),
        "old_log_prob": torch.arange(16.0).view(2, 4, 2),
        "sampler_log_prob": -torch.arange(16.0).view(2, 4, 2),
        "controls": {"weight": 0.5},
        "decisions_independent": True,
    }
    return block([[0, 1, 2, 3], [4, 5, 6, 7]]).replace(**(values | changes))


def test_flatten_makes_rows_of_windows_in_row_major_order():
    rows = independent().flatten(2)
    assert rows.reward.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert rows.action["a"].tolist() == rows.reward.tolist()
    assert rows.context["o"].shape == (4, 2, 1)
    assert rows.old_log_prob[3].tolist() == [[12, 13], [14, 15]]
    assert rows.sampler_log_prob[3].tolist() == [[-12, -13], [-14, -15]]
    assert rows.group.tolist() == [3, 3, 7, 7]
    assert rows.boundary.tolist() == [[False, False], [False, True]] * 2


def test_flatten_keeps_rows_whose_decisions_depend_on_each_other():
    rollout = block([[1, 2]])
    assert rollout.flatten() is rollout
    goal = Targets(tensors={"g": torch.zeros(1, 2)})
    assert flatten_targets(goal, rollout)["g"].shape == (1, 2)


def test_flatten_targets_follows_the_rows():
    goal = Targets(tensors={"g": torch.arange(8.0).view(2, 4)})
    assert flatten_targets(goal, independent(), 2)["g"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_flatten_refuses_a_window_that_does_not_divide():
    with pytest.raises(ValueError, match="4 decisions per rollout cannot be cut into windows of 3"):
        independent().flatten(3)


def test_minibatch_takes_rows_of_everything():
    rows = independent().flatten()
    goals = {"g": torch.arange(8.0)[:, None]}
    found = minibatch(rows, goals, torch.tensor([5, 2]), 8.0, 8.0)
    for values in (found.reward, found.action["a"], found.context["o"][..., 0], found.targets["g"]):
        assert values[:, 0].tolist() == [5.0, 2.0]
    assert found.old_log_prob.tolist() == [[[10.0, 11.0]], [[4.0, 5.0]]]
    assert found.sampler_log_prob.tolist() == [[[-10.0, -11.0]], [[-4.0, -5.0]]]
    assert found.controls == {"weight": 0.5}
    assert found.group.tolist() == [7, 3]


def test_mean_divides_by_the_decisions_of_the_optimiser_batch_and_averages_k():
    mini = part({"g": torch.zeros(2, 2)}, mask=flags([1, 1], [1, 0]))
    x = torch.tensor([[1.0, 2.0], [3.0, 99.0]])
    # (1 + 2 + 3) / 3 = 2; with K = 2 and the second step 1 higher 2.5
    assert float(mini.mean(x)) == 2.0
    assert float(mini.mean(torch.stack([x, x + 1], dim=-1))) == 2.5
    mini.global_decisions = 6.0
    assert float(mini.mean(x)) == 1.0


def test_mean_keeps_nan_of_masked_decisions_out():
    mini = part({"g": torch.zeros(1, 2)}, mask=flags([1, 0]))
    assert float(mini.mean(torch.tensor([[2.0, float("nan")]]))) == 2.0


def test_mean_rows_leaves_out_rows_without_trainable_decisions():
    mini = part({"g": torch.zeros(3, 2)}, mask=flags([1, 0], [0, 0], [1, 1]))
    # (1 + 4) / 3 rows of the optimiser batch
    assert float(mini.mean_rows(torch.tensor([1.0, 50.0, 4.0]))) == pytest.approx(5 / 3, abs=ROUNDED)


def test_split_parts_add_up_to_the_whole():
    x = torch.arange(10.0).view(5, 2)
    mini = part({"x": x}, mask=flags([1, 1], [1, 0], [1, 1], [0, 0], [1, 0]))
    parts = list(mini.split(2))
    assert [p.num_rollouts for p in parts] == [2, 2, 1]
    # 0 + 1 + 2 + 4 + 5 + 8 = 20 over 6 decisions
    assert float(mini.mean(x)) == pytest.approx(20 / 6, abs=ROUNDED)
    assert sum(float(p.mean(p.targets["x"])) for p in parts) == pytest.approx(20 / 6, abs=ROUNDED)
    assert list(mini.split(0)) == [mini]


def test_a_silent_part_adds_nothing_and_keeps_the_sizes():
    mini = part({"x": torch.ones(3, 2)})
    silent = mini.silent()
    assert (silent.num_rollouts, silent.num_decisions) == (1, 0)
    assert (silent.global_decisions, silent.global_rows) == (6.0, 3.0)
    assert float(silent.mean(silent.targets["x"])) == 0.0
    assert mini.num_decisions == 6


def test_a_block_without_recorded_likelihoods_says_what_to_require():
    whole = independent()
    assert whole.behaviour_log_prob is whole.old_log_prob
    with pytest.raises(ValueError, match="name 'log_prob' in requires"):
        _ = independent(old_log_prob=None).behaviour_log_prob


def test_targets_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"target 'g': expected \[2, 4\] \+ \[...\], found \[2\]"):
        flatten_targets(Targets(tensors={"g": torch.zeros(2)}), independent())


def test_targets_refuse_a_gradient():
    with pytest.raises(ValueError, match="target 'a' carries a gradient"):
        Targets(tensors={"a": torch.zeros(1, 1, requires_grad=True)})


def test_memo_is_shared_until_a_parameter_changes():
    rollout, owner, calls = block([[0.0]]), torch.nn.Linear(1, 1), []

    def ask():
        return rollout.memo(owner, "x", lambda: calls.append(1) or len(calls))

    assert [ask(), ask()] == [1, 1]
    with torch.no_grad():
        assert ask() == 2  # another gradient mode
        owner.weight.add_(1.0)
    assert ask() == 3
    assert rollout.replace()._memo == {}


def test_assert_shapes_accepts_a_sound_block_and_counts_decisions():
    rollout = independent(mask=flags([1, 1, 0, 0], [1, 1, 1, 1]))
    assert_shapes(rollout)
    assert rollout.num_decisions == 6
    assert rollout.num_rollouts == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": torch.ones(2, 4)}, r"rollout.mask: expected bool \[2, 4\], found torch.float32 \[2, 4\]"),
        ({"boundary": flags([1], [1])}, r"rollout.boundary: expected bool \[2, 4\]"),
        ({"reward": torch.zeros(2)}, r"rollout.reward: expected float \[2, 4\]"),
        ({"group": torch.zeros(4)}, r"rollout.group: expected int64 \[2\]"),
        ({"action": {"a": torch.zeros(2, 3)}}, r"rollout.action.a: expected \[2, 4, ...\]"),
        ({"context": {"o": torch.zeros(2, 3)}}, r"rollout.context.o: expected \[2, 4\]"),
        ({"old_log_prob": torch.zeros(2, 4)}, r"rollout.old_log_prob: expected \[2, 4, K\]"),
        (
            {"terminated": torch.zeros(2, 4, dtype=torch.bool), "boundary_context": {"o": torch.zeros(5, 1, 1)}},
            r"rollout.boundary_context.o: expected \[2, 1, ...\], found torch.float32 \[5, 1, 1\]",
        ),
        ({"terminated": flags([1, 0, 0, 0], [0, 0, 0, 1])}, "terminated decisions must also be boundaries"),
    ],
)
def test_assert_shapes_names_the_field(changes, message):
    with pytest.raises(ValueError, match=message):
        assert_shapes(independent(**changes))
