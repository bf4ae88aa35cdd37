"""Writes the package of a new plugin: it installs, passes its checks and trains before a line of it is changed."""

from __future__ import annotations

import keyword
import re
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from rlflow.registry import UnknownNameError, find

SUFFIX = ".tmpl"
MAX_PARTS = {"algorithm": 1, "task": 2}
EXAMPLES = {"algorithm": "my_algo", "task": "family/my_task"}


class ScaffoldError(ValueError):
    """A package that cannot be written: its name or its folder."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The names of a new plugin package.

    Attributes:
        kind: `algorithm` or `task`.
        name: Registered name.
    """

    kind: str
    name: str

    @property
    def module(self) -> str:
        """Module of the class."""
        return self.name.replace("/", "_")

    @property
    def package(self) -> str:
        """Import name of the package."""
        return f"rlflow_{self.module}"

    @property
    def distribution(self) -> str:
        """Name of the package for pip, and of its folder."""
        return self.package.replace("_", "-")

    @property
    def class_name(self) -> str:
        """The name in camel case; with the kind behind it where the contract uses that word."""
        camel = "".join(part.capitalize() for part in self.module.split("_"))
        text = "".join(path.read_text(encoding="utf-8") for path, _ in _templates(self.kind))
        taken = keyword.iskeyword(camel) or re.search(rf"\b{camel}\b", text)
        return camel + self.kind.capitalize() if taken else camel

    @property
    def values(self) -> dict[str, str]:
        """What the templates leave open."""
        return {
            "name": self.name,
            "module": self.module,
            "package": self.package,
            "distribution": self.distribution,
            "class_name": self.class_name,
        }


def plan(kind: str, name: str) -> Plan:
    """The names of a new plugin.

    Raises:
        ScaffoldError: A name that is no identifier, or that is registered already.
    """
    parts = name.split("/")
    if len(parts) > MAX_PARTS[kind] or not all(_is_valid(part) for part in parts):
        raise ScaffoldError(
            f"{kind} name {name!r}: expected {EXAMPLES[kind]!r}, that is {_rule(kind)}; "
            f"{suggestion(kind, name)!r} would be one"
        )
    try:
        entry = find(kind, name)
    except UnknownNameError:
        return Plan(kind=kind, name=name)
    family = f" (the family {parts[0]!r} serves every {parts[0]}/NAME)" if entry.argument is not None else ""
    raise ScaffoldError(
        f"{kind} {name!r} is taken by {entry.target} of package {entry.package}{family}; choose another name"
    )


def suggestion(kind: str, name: str) -> str:
    """The valid name nearest to `name`."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    parts = [re.sub(r"[^a-z0-9]+", "_", part).strip("_") for part in snake.split("/")]
    parts = [part for part in parts if part]
    if len(parts) > MAX_PARTS[kind]:
        parts = [*parts[: MAX_PARTS[kind] - 1], "_".join(parts[MAX_PARTS[kind] - 1 :])]
    mended = [part if _is_valid(part) else f"my_{part}" for part in parts]
    return "/".join(mended) or EXAMPLES[kind]


def write(plan: Plan, folder: Path) -> list[Path]:
    """Write the package into `folder`, which must not exist; all files or none.

    Returns:
        The files.

    Raises:
        ScaffoldError: The folder exists or cannot be made.
    """
    if folder.exists() or folder.is_symlink():
        raise ScaffoldError(f"expected a folder that does not exist, found {folder}; choose another with --folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the last step is a rename within one file system.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as made:
            package = Path(made) / folder.name
            _fill(plan, package)
            package.rename(folder)
    except OSError as error:
        raise ScaffoldError(f"expected a folder that can be written at {folder}, found: {error.strerror}") from error
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _fill(plan: Plan, package: Path) -> None:
    values = plan.values
    names = {
        "package": plan.package,
        "module.py": f"{plan.module}.py",
        "test_module.py": f"test_{plan.module}.py",
        "preset.yaml": f"{plan.name.rpartition('/')[2]}.yaml",
    }
    for source, relative in _templates(plan.kind):
        path = package.joinpath(*(names.get(part, part) for part in relative.removesuffix(SUFFIX).split("/")))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(source.read_text(encoding="utf-8")).substitute(values), encoding="utf-8")


def _templates(kind: str) -> list[tuple[Traversable, str]]:
    """The template files of a kind with their paths in the new package."""
    return list(_walk(files("rlflow") / "templates" / kind, ""))


def _walk(folder: Traversable, prefix: str) -> list[tuple[Traversable, str]]:
    found: list[tuple[Traversable, str]] = []
    for path in sorted(folder.iterdir(), key=lambda entry: entry.name):
        relative = f"{prefix}{path.name}"
        found += _walk(path, f"{relative}/") if path.is_dir() else [(path, relative)]
    return found


def _is_valid(part: str) -> bool:
    return re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", part) is not None and not keyword.iskeyword(part)


def _rule(kind: str) -> str:
    words = "lower-case letters, digits and single underscores, beginning with a letter, no Python keyword"
    return words if MAX_PARTS[kind] == 1 else f"one or two parts with a slash between, each of {words}"
