"""A suite file: which algorithms meet which tasks, with which budgets, and what may be set for one pair alone.

    name: core                                # letters, digits, `.`, `_`, `+`, `-`: it names folders and the experiment
    version: "1"
    division: closed
    statistics: 1
    seeds: 5
    algorithms:
      - ppo
      - fpo
      - {name: fpo-wide, algorithm: fpo, settings: {algorithm.clip: 0.3}}   # a variant, an entrant of its own
    tasks:
      image/shapes: {}                        # settings of all algorithms on this task, e.g. its policy
    settings: {trainer.num_evaluations: 11}   # settings of all pairs
    budgets:
      quick:
        settings: {}
        tasks:
          image/shapes: {trainer.budget: 9600}
    overrides:
      fpo:
        image/shapes: {update.lr: 6.0e-4}     # at most four keys for a pair; variants of fpo have them too

Packages offer suites as entry points `NAME = "package"` of the group `rlflow.suites`, with NAME.yaml in the package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from rlflow.registry import did_you_mean, find
from rlflow.suite_checks import SuiteError, known, mapping, one_of, plain, positive
from rlflow.yaml_text import read_yaml

MAX_OVERRIDES = 4
DIVISIONS = ("closed", "open")
STATISTICS = (1,)
REQUIRED = ("name", "version", "algorithms", "tasks", "seeds", "budgets")
VARIANT_KEYS = ("name", "algorithm", "settings")
OPTIONAL = ("description", "division", "statistics", "settings", "overrides")

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Sizes of a run of the suite: `settings` of all pairs, then those of one task."""

    name: str
    settings: Settings
    tasks: Mapping[str, Settings]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """An algorithm under settings of its own, e.g. without one of its terms."""

    algorithm: str
    settings: Settings


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite file, checked.

    Attributes:
        name: Name of the suite.
        version: Changes whenever results stop being comparable.
        description: One line.
        division: `closed`: equal conditions; `open`: anything, disclosed.
        statistics: Version of the board's statistics.
        seeds: Training seeds 0..seeds-1.
        algorithms: Entrants: registered names, and the names of variants.
        variants: Those of the entrants that are not registered names.
        tasks: Registered names with the settings that all algorithms share on them.
        settings: Settings of all pairs.
        budgets: By name.
        overrides: Settings of one pair, `(algorithm, task)`.
        digest: Of the file.
    """

    name: str
    version: str
    description: str = ""
    division: str = "closed"
    statistics: int = 1
    seeds: int
    algorithms: tuple[str, ...]
    variants: Mapping[str, Variant]
    tasks: Mapping[str, Settings]
    settings: Settings
    budgets: Mapping[str, Budget]
    overrides: Mapping[tuple[str, str], Settings]
    digest: str

    def experiment(self, budget: str) -> str:
        """MLflow experiment of one budget: scores of different budgets are different boards."""
        return f"{self.name}@{self.version}-{budget}"

    def budget(self, name: str) -> Budget:
        """The budget of this name.

        Raises:
            SuiteError: Unknown, with the nearest names.
        """
        if name not in self.budgets:
            raise SuiteError(f"suite {self.name!r} has no budget {name!r}{did_you_mean(name, self.budgets)}")
        return self.budgets[name]

    def registered(self, entrant: str) -> str:
        """Registered name of an entrant's algorithm."""
        return self.variants[entrant].algorithm if entrant in self.variants else entrant

    def layers(self, algorithm: str, task: str, budget: str) -> list[dict[str, Any]]:
        """Configuration layers of a pair, later wins: all pairs, budget, task, budget of the task, pair, variant."""
        sizes = self.budget(budget)
        variant = self.variants.get(algorithm)
        parts = (
            self.settings,
            sizes.settings,
            self.tasks.get(task, {}),
            sizes.tasks.get(task, {}),
            self.overrides.get((self.registered(algorithm), task), {}),
            variant.settings if variant else {},
        )
        return [nested(part) for part in parts if part]


def load_suite(name: str) -> Suite:
    """The registered suite `name`, or the file where it is a path to a .yaml.

    Raises:
        UnknownNameError: No such suite.
        SuiteError: The file is not a suite.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise SuiteError(f"expected a suite file at {path}, found none")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SuiteError(f"expected a text file at {path}, found one that cannot be read: {error}") from error
        return parse_suite(text, str(path))
    entry = find("suite", name)
    source = files(entry.target) / f"{name}.yaml"
    if not source.is_file():
        raise SuiteError(f"suite {name!r} is registered by {entry.package}, but {entry.target} has no {name}.yaml")
    return parse_suite(source.read_text(encoding="utf-8"), f"{entry.target}/{name}.yaml")


def experiment_of(suite: str, budget: str) -> str:
    """MLflow experiment of a registered suite, or a file, at a budget; a name that has an `@` is one already."""
    if "@" in suite:
        return suite
    loaded = load_suite(suite)
    return loaded.experiment(loaded.budget(budget).name)


def parse_suite(text: str, origin: str) -> Suite:
    """Check the text of a suite file; `origin` names it in errors."""
    try:
        raw = read_yaml(text)
    except yaml.YAMLError as error:
        raise SuiteError(f"{origin}: not YAML: {' '.join(str(error).split())}") from error
    values = mapping(raw, f"{origin}: the suite")
    known(values, (*REQUIRED, *OPTIONAL), origin)
    missing = [key for key in REQUIRED if key not in values]
    if missing:
        raise SuiteError(f"{origin}: missing {missing}")
    where = f"{origin}: tasks"
    tasks = {task: _settings(s, f"{where}.{task}") for task, s in mapping(values["tasks"], where).items()}
    if not tasks:
        raise SuiteError(f"{where}: expected at least one, found none")
    algorithms, variants = _entrants(values["algorithms"], f"{origin}: algorithms")
    for key in ("name", "version"):
        plain(str(values[key]), f"{origin}: {key}")
    suite = Suite(
        name=str(values["name"]),
        version=str(values["version"]),
        description=str(values.get("description", "")),
        division=one_of(values.get("division", "closed"), DIVISIONS, f"{origin}: division"),
        statistics=one_of(values.get("statistics", 1), STATISTICS, f"{origin}: statistics"),
        seeds=positive(values["seeds"], f"{origin}: seeds"),
        algorithms=algorithms,
        variants=variants,
        tasks=tasks,
        settings=_settings(values.get("settings"), f"{origin}: settings"),
        budgets=_budgets(values["budgets"], tasks, origin),
        overrides=_overrides(values.get("overrides"), _registered(algorithms, variants), tasks, origin),
        digest=hashlib.sha256(text.encode()).hexdigest()[:16],
    )
    for entrant in suite.algorithms:
        find("algorithm", suite.registered(entrant))
    for task in suite.tasks:
        find("task", task)
    return suite


def nested(settings: Settings) -> dict[str, Any]:
    """`{"a.b": 1}` to `{"a": {"b": 1}}`."""
    tree: dict[str, Any] = {}
    for dotted, value in settings.items():
        *sections, leaf = dotted.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return tree


def _budgets(raw: object, tasks: Iterable[str], origin: str) -> dict[str, Budget]:
    budgets = {}
    for name, value in mapping(raw, f"{origin}: budgets").items():
        where = f"{origin}: budgets.{name}"
        plain(name, where)
        parts = mapping(value, where)
        known(parts, ("settings", "tasks"), where)
        own = mapping(parts.get("tasks") or {}, f"{where}.tasks")
        known(own, tasks, f"{where}.tasks")
        settings = {task: _settings(s, f"{where}.tasks.{task}") for task, s in own.items()}
        budgets[name] = Budget(
            name=name, settings=_settings(parts.get("settings"), f"{where}.settings"), tasks=settings
        )
    if not budgets:
        raise SuiteError(f"{origin}: budgets: expected at least one, found none")
    return budgets


def _overrides(
    raw: object, algorithms: Iterable[str], tasks: Iterable[str], origin: str
) -> dict[tuple[str, str], Settings]:
    pairs: dict[tuple[str, str], Settings] = {}
    where = f"{origin}: overrides"
    outer = mapping(raw or {}, where)
    known(outer, algorithms, where)
    for algorithm, value in outer.items():
        inner = mapping(value, f"{where}.{algorithm}")
        known(inner, tasks, f"{where}.{algorithm}")
        for task, settings in inner.items():
            pair = _settings(settings, f"{where}.{algorithm}.{task}")
            if len(pair) > MAX_OVERRIDES:
                raise SuiteError(
                    f"{where}.{algorithm}.{task}: expected at most {MAX_OVERRIDES} keys, found {len(pair)}: "
                    f"{sorted(pair)}; one configuration has to serve all tasks of an algorithm"
                )
            pairs[algorithm, task] = pair
    return pairs


def _settings(raw: object, where: str) -> Settings:
    settings = mapping(raw or {}, where)
    for key, value in settings.items():
        if "." not in key or isinstance(value, Mapping):
            raise SuiteError(
                f"{where}: expected dotted keys with plain values, e.g. update.lr: 1e-4, found {key}: {value}"
            )
    return settings


def _entrants(raw: object, where: str) -> tuple[tuple[str, ...], dict[str, Variant]]:
    if not isinstance(raw, list) or not raw:
        raise SuiteError(f"{where}: expected a list of different names, found {raw}")
    names, variants = [], {}
    for item in raw:
        name = str(item)
        if isinstance(item, Mapping):
            parts = mapping(item, where)
            known(parts, VARIANT_KEYS, where)
            if set(parts) != set(VARIANT_KEYS):
                raise SuiteError(f"{where}: expected a variant with {list(VARIANT_KEYS)}, found {parts}")
            name = plain(str(parts["name"]), f"{where}: name")
            settings = _settings(parts["settings"], f"{where}.{name}.settings")
            variants[name] = Variant(algorithm=str(parts["algorithm"]), settings=settings)
        names.append(name)
    if len(set(names)) != len(names):
        raise SuiteError(f"{where}: expected a list of different names, found {names}")
    return tuple(names), variants


def _registered(entrants: Iterable[str], variants: Mapping[str, Variant]) -> list[str]:
    """Algorithms behind the entrants, each once: a variant has the overrides of its algorithm and none of its own."""
    return list(dict.fromkeys(variants[name].algorithm if name in variants else name for name in entrants))
