import json

import pytest

from rlflow.config import ConfigError, from_resolved, resolve
from rlflow.policy import MissingCapabilityError
from rlflow.registry import UnknownNameError


def toy(*overrides, algorithm="ppo", layers=()):
    return resolve(algorithm, "toy", overrides, layers)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("update.lrr=1", r"unknown key 'update.lrr'; did you mean .*update.lr"),
        ("algorithm.clipp=1", r"unknown key 'algorithm.clipp'; did you mean algorithm.clip"),
        ("task.group_sizes=4", r"unknown key 'task.group_sizes'; did you mean task.group_size"),
        ("task.flow.evalsteps=4", r"unknown key 'task.flow.evalsteps'; did you mean task.flow.eval_steps"),
        ("nonsense=1", "unknown key 'nonsense'"),
        ("update.lr", r"override 'update.lr': expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("update.lr=fast", "update.lr: Value 'fast'"),
        ("task.group_size=2.5", "task.group_size: Value '2.5'"),
        ("update.lr_schedule=cosine", "update.lr_schedule: "),
        ("task.kind=mamba", "task.kind: "),
        ("algorithm.name=fpo", "unknown key 'algorithm.name'"),
    ],
)
def test_bad_overrides_are_refused_with_a_way_out(override, message):
    with pytest.raises(ConfigError, match=message):
        toy(override)


def test_a_plain_key_goes_to_the_section_that_has_it():
    assert toy("lr=0.5").update.lr == 0.5
    assert toy("group_size=2").task.group_size == 2
    assert toy("clip=0.3", "seed=4").algorithm.clip == 0.3


def test_an_unknown_section_of_a_layer_is_refused():
    with pytest.raises(ConfigError, match="unknown section 'updates'; did you mean update"):
        toy(layers=[{"updates": {"lr": 1.0}}])


def test_bad_names_are_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match=r"unknown algorithm 'poo'; did you mean .*ppo"):
        resolve("poo", "toy")
    with pytest.raises(
        UnknownNameError, match=r"unknown task 'reasoning/countdwn'; did you mean .*reasoning/countdown"
    ):
        resolve("ppo", "reasoning/countdwn")


def test_later_layers_win():
    default = toy()
    assert (default.update.lr, default.trainer.seed, default.task.group_size) == (3e-4, 0, 4)
    suite = {"update": {"lr": 0.1, "ema": 0.5}, "algorithm": {"clip": 0.3}}
    cell = {"update": {"lr": 0.2}}
    config = toy("update.ema=0.9", layers=[suite, cell])
    # Default < first layer < second layer < override; what nobody touches keeps its default.
    assert config.update.lr == 0.2
    assert config.update.ema == 0.9
    assert config.algorithm.clip == 0.3
    assert config.update.epochs == default.update.epochs


def test_the_presets_of_a_task_come_before_layers():
    default = resolve("ppo", "reasoning/countdown")
    size = default.task.groups_per_rollout
    changed = resolve("ppo", "reasoning/countdown", layers=[{"task": {"groups_per_rollout": 2 * size}}])
    assert changed.task.groups_per_rollout == 2 * size
    assert default.update.lr != 3e-4  # the preset's, not the field's default


def test_a_family_gives_the_rest_of_the_name_to_its_task():
    config = resolve("ppo", "control/Hopper-v5")
    assert config.task_name == config.task.name == "control/Hopper-v5"
    assert "Hopper-v5" in config.resolved["task"].values()


@pytest.mark.parametrize(
    ("algorithm", "overrides", "message"),
    [
        ("flow_grpo", ["task.group_size=1"], "task.group_size: flow_grpo compares rollouts within a group"),
        ("reinforce_pp", ["task.group_size=1", "algorithm.variant=baseline"], "needs at least 2, found 1"),
        ("fpo", ["task.group_size=1", "algorithm.baseline=group"], "needs at least 2, found 1"),
        ("ppo", ["update.updates_per_rollout=5"], r"rows per rollout = 16 is not divisible by .* = 5; .* fits is 4"),
        ("ppo", ["update.epochs=2", "update.updates_per_rollout=3"], "update.updates_per_rollout = 3 is not divisible"),
        ("ppo", ["trainer.devices=3"], "task.groups_per_rollout = 4 is not divisible by trainer.devices = 3"),
        ("ppo", ["task.groups_per_rollout=0"], "task.groups_per_rollout: expected at least 1, found 0"),
        ("ppo", ["trainer.budget=0"], "trainer.budget: expected at least 1, found 0"),
        ("ppo", ["trainer.num_evaluations=1"], "trainer.num_evaluations: expected at least 2"),
        ("ppo", ["trainer.precision=16-mixed"], "needs a loss scaler"),
        ("ppo", ["update.micro_batch=2", "update.micro_batch_decisions=8"], "rows or decisions, not both"),
        ("ppo", ["update.micro_batch_decisions=-1"], "update.micro_batch_decisions = -1: expected"),
        ("flowrl", ["algorithm.beta=0"], "beta: expected > 0, found 0"),
        ("flow_grpo", ["task.flow.train_steps=1"], "expected train_steps >= 2"),
    ],
)
def test_sizes_that_cannot_work_are_refused(algorithm, overrides, message):
    with pytest.raises(ConfigError, match=message):
        toy(*overrides, algorithm=algorithm)


def test_groups_of_one_are_fine_for_algorithms_that_compare_nothing():
    assert toy("task.group_size=1").task.group_size == 1
    assert toy("task.group_size=1", algorithm="reinforce_pp").task.group_size == 1


def test_a_missing_capability_is_named_before_any_work():
    with pytest.raises(MissingCapabilityError, match=r"'ppo' cannot run on task 'toy': it requires \['entropy'\]"):
        toy("task.kind=flow", "algorithm.entropy_weight=0.1")


def test_windows_must_divide_the_rows():
    kind = ["task.kind=gaussian", "task.horizon=4", "update.updates_per_rollout=2"]
    # 16 rollouts of 4 decisions: 64 rows, 2 minibatches of windows of 4 fit, windows of 3 do not.
    assert toy(*kind, "algorithm.window=4", algorithm="flowrl").algorithm.row_decisions == 4
    with pytest.raises(ConfigError, match="is not divisible"):
        toy(*kind, "algorithm.window=3", algorithm="flowrl")


@pytest.mark.parametrize("algorithm", ["flow_grpo", "fpo", "flowrl", "ppo", "reinforce_pp"])
def test_a_resolved_configuration_builds_the_same_run(algorithm):
    config = toy("task.kind=flow", "task.flow.sde=cps", "update.lr=0.01", "trainer.seed=7", algorithm=algorithm)
    stored = json.loads(json.dumps(config.resolved))
    again = from_resolved(stored)
    assert again == config
    assert again.task.flow.sde == "cps"


def test_flat_values_are_dotted():
    flat = toy("task.flow.sde=cps").flat()
    assert flat["task.flow.sde"] == "cps"
    assert flat["algorithm.name"] == "ppo"
    assert flat["task.name"] == "toy"
    assert not any(isinstance(value, dict) for value in flat.values())


def test_iterations_round_the_budget_up():
    # 16 samples an iteration: 33 samples take 3 iterations.
    assert toy("trainer.budget=33").num_iterations == 3
    assert toy("trainer.budget=32").num_iterations == 2
