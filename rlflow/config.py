"""Configuration: dataclass fields <-> YAML <-> dotted overrides, through OmegaConf.

The constructor is the configuration. Four sections: `algorithm`, `task` (both the plugin's own dataclass), `update`
and `trainer` (below). Layers, later wins: field defaults, the task's preset YAML, the suite's overrides, `key=value`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlflow.algorithm import Algorithm, Loss
from rlflow.pairing import check_config
from rlflow.policy import Policy
from rlflow.registry import Entry, did_you_mean, find
from rlflow.rollout import Minibatch, Rollout, Targets
from rlflow.settings import SECTIONS, Config, ConfigError, TrainerConfig, Update, flatten
from rlflow.task import Task

__all__ = ["SECTIONS", "Config", "ConfigError", "TrainerConfig", "Update", "from_resolved", "resolve", "resolve_task"]


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
    return _resolve(algorithm, find("algorithm", algorithm).load(), task, overrides, layers)


def resolve_task(task: str, overrides: Sequence[str] = ()) -> Task:
    """A task with its preset and overrides, for no algorithm in particular; raises what `resolve` raises."""
    return _resolve("none", _NoAlgorithm, task, overrides, ()).task


@dataclass(frozen=True, kw_only=True)
class _NoAlgorithm(Algorithm):
    """Asks nothing of a task and learns nothing: what a task alone is configured with."""

    @property
    def requires(self) -> frozenset[str]:
        """No capability."""
        return frozenset()

    def targets(self, policy: Policy, rollout: Rollout) -> Targets:
        """None."""
        return Targets(tensors={})

    def loss(self, policy: Policy, minibatch: Minibatch) -> Loss:
        """Zero, whatever the policy does."""
        return Loss(terms={"nothing": minibatch.mask.sum() * 0.0})


def _resolve(
    algorithm: str,
    algorithm_class: type,
    task: str,
    overrides: Sequence[str],
    layers: Sequence[Mapping[str, Any]],
) -> Config:
    entry = find("task", task)
    task_class = entry.load()
    schema = _schema(algorithm_class, task_class)
    known = tuple(_keys(schema))
    given = [{"task": _names(entry, task_class)}, preset(entry, task_class), *layers, {"task": {"name": task}}]
    merged = _merge(schema, [*given, *(_parse(override, schema, known) for override in overrides)], known)
    config = _build(algorithm, task, merged, known)
    check_config(config)
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


def _names(entry: Entry, task_class: type[Task]) -> dict[str, Any]:
    if entry.argument is None:
        return {}
    if task_class.name_field is None:
        raise ConfigError(f"task {entry.name!r}: {task_class.__name__} does not serve a family of names")
    return {task_class.name_field: entry.argument}


def _schema(algorithm_class: type, task_class: type) -> DictConfig:
    sections = {"algorithm": algorithm_class, "task": task_class, "update": Update, "trainer": TrainerConfig}
    schema = OmegaConf.create({name: _section(cls) for name, cls in sections.items()})
    for section in SECTIONS:
        OmegaConf.set_readonly(schema[section], False)
    OmegaConf.set_struct(schema, True)
    _free_mappings(schema)
    return schema


@lru_cache(maxsize=64)
def _section(cls: type) -> DictConfig:
    """The fields of a dataclass with their types; `OmegaConf.create` copies it, so that it may be shared."""
    section = OmegaConf.structured(cls)
    assert isinstance(section, DictConfig)
    return section


def _free_mappings(node: DictConfig) -> None:
    """Let mapping fields (`dict[str, ...]`) take keys of their own; a dataclass keeps to its fields."""
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            if OmegaConf.get_type(child) is dict and child is not node:
                OmegaConf.set_struct(child, False)
            _free_mappings(child)


def _merge(schema: DictConfig, layers: Sequence[Mapping[str, Any]], known: Sequence[str]) -> DictConfig:
    """All layers over the schema at once, later wins: a merge copies everything, which is what resolving costs."""
    for layer in layers:
        _check_keys(layer, known)
    try:
        merged = OmegaConf.merge(schema, *(OmegaConf.create(dict(layer)) for layer in layers))
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"{getattr(error, 'full_key', '') or '/'.join(SECTIONS)}: {first}") from error
    assert isinstance(merged, DictConfig)
    return merged


def _check_keys(layer: Mapping[str, Any], known: Sequence[str]) -> None:
    for section, values in layer.items():
        if section not in SECTIONS:
            raise ConfigError(f"unknown section {section!r}{did_you_mean(str(section), SECTIONS)}")
        for key, _ in flatten(values or {}):
            dotted = f"{section}.{key}"
            if dotted not in known and not any(k.startswith(dotted + ".") for k in known) and not _open(dotted, known):
                raise ConfigError(f"unknown key {dotted!r}{did_you_mean(dotted, known)}")


def _open(dotted: str, known: Sequence[str]) -> bool:
    """Whether `dotted` lies below a known leaf (a free mapping field), which OmegaConf checks itself."""
    return any(dotted.startswith(k + ".") for k in known)


def _parse(override: str, schema: DictConfig, known: Sequence[str]) -> dict[str, Any]:
    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected section.key=value, e.g. update.lr=1e-4")
    if key.partition(".")[0] not in SECTIONS:
        holders = [s for s in SECTIONS if key.partition(".")[0] in schema[s]]
        if len(holders) != 1:
            detail = f"; it is in {holders}, name the section" if holders else did_you_mean(key, known)
            raise ConfigError(f"unknown key {key!r}{detail}")
        override = f"{holders[0]}.{override}"
    parsed = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    assert isinstance(parsed, dict)
    return {str(k): v for k, v in parsed.items()}


def _build(algorithm: str, task: str, merged: DictConfig, known: Sequence[str]) -> Config:
    missing = [k for k in known if OmegaConf.is_missing(merged, k)]
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


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ConfigError(f"expected a dataclass that derives from {kind.__name__}, found {type(value).__name__}")
    return value


def _keys(config: DictConfig) -> Iterator[str]:
    for section in SECTIONS:
        for key, _ in flatten(OmegaConf.to_container(config[section], throw_on_missing=False)):
            yield f"{section}.{key}"
