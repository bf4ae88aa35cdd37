"""Configuration: dataclass fields <-> YAML <-> dotted overrides, through OmegaConf.

The constructor is the configuration. Four sections: `algorithm`, `task` (both the plugin's own dataclass), `update`
and `trainer` (below). Layers, later wins: field defaults, the task's preset YAML, the suite's overrides, `key=value`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlflow.algorithm import Algorithm
from rlflow.policy import check_capabilities
from rlflow.registry import Entry, did_you_mean, find
from rlflow.task import Task

V = TypeVar("V")
SECTIONS = ("algorithm", "task", "update", "trainer")


class ConfigError(ValueError):
    """A configuration that cannot run; says what was expected, found and how to fix it."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """How one rollout becomes optimiser steps.

    Attributes:
        lr: AdamW step size of the actor. Too high: diversity and then the score collapse; too low: flat curves.
        critic_lr: Step size of the value head; None means `lr`.
        partition_lr: Step size of log Z; None means `lr`. Too low: the balance residual is blamed on the policy.
        lr_schedule: `constant`, or `linear` to `lr_final_fraction * lr` at the end of the budget.
        lr_final_fraction: End of the linear schedule.
        warmup_fraction: Share of the budget over which the step size rises from 0.
        betas: AdamW moments.
        eps: AdamW epsilon.
        weight_decay: AdamW decay.
        grad_clip: Gradient norm limit of each parameter group apart (0 = off). Too low: every step has the same length.
        epochs: Passes over the rollout. Too many: the ratio leaves the clip range.
        updates_per_rollout: Optimiser steps per rollout, all epochs together.
        micro_batch: Rows per forward pass (0 = whole minibatch); changes memory and speed, not the result.
        ema: Decay of the averaged weights that are evaluated (0 = evaluate the trained weights).
    """

    lr: float = 3e-4
    critic_lr: float | None = None
    partition_lr: float | None = None
    lr_schedule: Literal["constant", "linear"] = "constant"
    lr_final_fraction: float = 0.0
    warmup_fraction: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    epochs: int = 1
    updates_per_rollout: int = 2
    micro_batch: int = 0
    ema: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Budget, evaluation grid and hardware of one run.

    Attributes:
        seed: Root of every random stream.
        budget: Samples to consume (scored rollouts, or environment steps), rounded up to whole iterations.
        num_evaluations: Points of the evaluation grid; point 0 is the untrained policy.
        accelerator: Lightning's accelerator; `auto` takes CUDA when there is one.
        devices: Number of processes (one device each).
        strategy: Lightning's strategy, e.g. `auto`, `ddp`, `fsdp`.
        precision: Lightning's precision, e.g. `32-true`, `bf16-mixed`; log-probs stay float32.
        num_threads: Torch threads per process (0 = torch's choice).
    """

    seed: int = 0
    budget: int = 10_000
    num_evaluations: int = 11
    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    num_threads: int = 0


@dataclass(frozen=True, kw_only=True)
class Config:
    """A resolved run: the built plugin objects and the plain values they were built from."""

    algorithm_name: str
    task_name: str
    algorithm: Algorithm
    task: Task
    update: Update
    trainer: TrainerConfig
    resolved: dict[str, Any]

    @property
    def num_iterations(self) -> int:
        """Iterations that consume the budget."""
        return -(-self.trainer.budget // self.task.samples_per_rollout)

    def flat(self) -> dict[str, Any]:
        """The resolved values with dotted keys."""
        return dict(_flatten(self.resolved))


def resolve(
    algorithm: str, task: str, overrides: Sequence[str] = (), layers: Sequence[Mapping[str, Any]] = ()
) -> Config:
    """Build a run from names, extra layers (a suite's sections) and dotted overrides.

    Args:
        algorithm: Registered algorithm.
        task: Registered task.
        overrides: `section.key=value`, or `key=value` where only one section has that key.
        layers: Mappings with some of the four sections, applied in order between preset and overrides.

    Raises:
        UnknownNameError: Unknown algorithm or task.
        ConfigError: Unknown key, wrong type, sizes that do not divide.
        MissingCapabilityError: The pairing cannot run.
    """
    algorithm_class = find("algorithm", algorithm).load()
    entry = find("task", task)
    task_class = entry.load()
    schema = _schema(algorithm_class, task_class)
    merged = schema
    for layer in ({"task": _names(entry, task_class)}, preset(entry, task_class), *layers):
        merged = _merge(merged, layer, schema)
    merged = _merge(merged, {"task": {"name": task}}, schema)
    for override in overrides:
        merged = _merge(merged, _parse(override, schema), schema)
    config = _build(algorithm, task, merged, schema)
    check(config, task_class)
    return config


def from_resolved(resolved: Mapping[str, Any]) -> Config:
    """Build a run again from `Config.resolved` (of a checkpoint or a finished run)."""
    values = {section: dict(resolved[section]) for section in SECTIONS}
    name = values["algorithm"].pop("name")
    return resolve(name, values["task"]["name"], layers=[values])


def preset(entry: Entry, task_class: type[Task]) -> Mapping[str, Any]:
    """The task's preset: `presets/NAME.yaml` beside its module, else the family's, else nothing."""
    folder = files(task_class.__module__.rpartition(".")[0] or task_class.__module__) / "presets"
    family, _, rest = entry.name.partition("/")
    for stem in (rest, family):
        path = folder / f"{stem}.yaml"
        if stem and path.is_file():
            loaded = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")))
            return {str(k): v for k, v in loaded.items()} if isinstance(loaded, dict) else {}
    return {}


def check(config: Config, task_class: type[Task]) -> None:
    """Refuse what cannot run: sizes that do not divide, missing groups, missing capabilities.

    Raises:
        ConfigError: Sizes.
        MissingCapabilityError: The pairing.
    """
    task, update, trainer = config.task, config.update, config.trainer
    policy_class = find("policy", task_class.policies[task.policy_kind]).load()
    check_capabilities(policy_class, config.algorithm.requires, config.algorithm_name, config.task_name)
    if config.algorithm.needs_groups and task.group_size < 2:
        raise ConfigError(
            f"task.group_size: {config.algorithm_name} compares rollouts within a group and needs at least 2, "
            f"found {task.group_size}; set task.group_size=8"
        )
    sizes = {
        "task.groups_per_rollout": task.groups_per_rollout,
        "task.group_size": task.group_size,
        "update.epochs": update.epochs,
        "update.updates_per_rollout": update.updates_per_rollout,
        "trainer.budget": trainer.budget,
        "trainer.devices": trainer.devices,
    }
    for key, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{key}: expected at least 1, found {value}")
    if trainer.num_evaluations < 2:
        raise ConfigError(f"trainer.num_evaluations: expected at least 2 (start and end), found {trainer.num_evaluations}")
    _divides("task.groups_per_rollout", task.groups_per_rollout, "trainer.devices", trainer.devices)
    _divides("update.updates_per_rollout", update.updates_per_rollout, "update.epochs", update.epochs)
    minibatches = update.updates_per_rollout // update.epochs
    rows = minibatches * int(config.algorithm.window)
    _divides("rows per rollout", task.rows_per_rollout, "updates per epoch times algorithm.window", rows)
    if trainer.precision.startswith("16"):
        raise ConfigError(f"trainer.precision: {trainer.precision} needs a loss scaler, which moves log-probs; use bf16-mixed")


def _divides(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value % divisor:
        near = [d for d in range(1, value + 1) if value % d == 0]
        fit = min(near, key=lambda d: abs(d - divisor))
        raise ConfigError(
            f"{name} = {value} is not divisible by {divisor_name} = {divisor}; the nearest {divisor_name} that fits is {fit}"
        )


def _names(entry: Entry, task_class: type[Task]) -> dict[str, Any]:
    if entry.argument is None:
        return {}
    if task_class.name_field is None:
        raise ConfigError(f"task {entry.name!r}: {task_class.__name__} does not serve a family of names")
    return {task_class.name_field: entry.argument}


def _schema(algorithm_class: type, task_class: type) -> DictConfig:
    sections = {"algorithm": algorithm_class, "task": task_class, "update": Update, "trainer": TrainerConfig}
    schema = OmegaConf.create({name: OmegaConf.structured(cls) for name, cls in sections.items()})
    for section in SECTIONS:
        OmegaConf.set_readonly(schema[section], False)
    OmegaConf.set_struct(schema, True)
    return schema


def _merge(base: DictConfig, layer: Mapping[str, Any], schema: DictConfig) -> DictConfig:
    known = list(_keys(schema))
    for section, values in layer.items():
        if section not in SECTIONS:
            raise ConfigError(f"unknown section {section!r}{did_you_mean(str(section), SECTIONS)}")
        for key, _ in _flatten(values or {}):
            dotted = f"{section}.{key}"
            if dotted not in known and not any(k.startswith(dotted + ".") for k in known) and not _open(dotted, known):
                raise ConfigError(f"unknown key {dotted!r}{did_you_mean(dotted, known)}")
    try:
        merged = OmegaConf.merge(base, OmegaConf.create(dict(layer)))
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"{getattr(error, 'full_key', '') or '/'.join(layer)}: {first}") from error
    assert isinstance(merged, DictConfig)
    return merged


def _open(dotted: str, known: Sequence[str]) -> bool:
    """Whether `dotted` lies below a known leaf (a free mapping field), which OmegaConf checks itself."""
    return any(dotted.startswith(k + ".") for k in known)


def _parse(override: str, schema: DictConfig) -> dict[str, Any]:
    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected section.key=value, e.g. update.lr=1e-4")
    if key.partition(".")[0] not in SECTIONS:
        holders = [s for s in SECTIONS if key.partition(".")[0] in schema[s]]
        if len(holders) != 1:
            detail = f"; it is in {holders}, name the section" if holders else did_you_mean(key, list(_keys(schema)))
            raise ConfigError(f"unknown key {key!r}{detail}")
        override = f"{holders[0]}.{override}"
    parsed = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    assert isinstance(parsed, dict)
    return {str(k): v for k, v in parsed.items()}


def _build(algorithm: str, task: str, merged: DictConfig, schema: DictConfig) -> Config:
    missing = [k for k in _keys(schema) if OmegaConf.is_missing(merged, k)]
    if missing:
        raise ConfigError(f"missing values for {missing}; set them with key=value")
    resolved = OmegaConf.to_container(merged, resolve=True)
    assert isinstance(resolved, dict)
    values: dict[str, Any] = {str(k): v for k, v in resolved.items()}
    values["algorithm"] = {"name": algorithm, **values["algorithm"]}
    try:
        built = {section: OmegaConf.to_object(merged[section]) for section in SECTIONS}
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    return Config(
        algorithm_name=algorithm,
        task_name=task,
        algorithm=_typed(built["algorithm"], Algorithm),
        task=_typed(built["task"], Task),
        update=_typed(built["update"], Update),
        trainer=_typed(built["trainer"], TrainerConfig),
        resolved=values,
    )


def _typed(value: Any, kind: type[V]) -> V:  # noqa: ANN401 - narrowed here
    if not isinstance(value, kind) or not dataclasses.is_dataclass(value):
        raise ConfigError(f"expected a dataclass that derives from {kind.__name__}, found {type(value).__name__}")
    return value


def _keys(config: DictConfig) -> Iterator[str]:
    for section in SECTIONS:
        for key, _ in _flatten(OmegaConf.to_container(config[section], throw_on_missing=False)):
            yield f"{section}.{key}"


def _flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - nested plain data
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _flatten(value, f"{prefix}{key}.")
    elif prefix:
        yield prefix[:-1], values
