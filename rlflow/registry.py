"""Names to classes through entry points, the same way for built-ins and third parties.

A package offers plugins in its pyproject.toml:

    [project.entry-points."rlflow.algorithms"]
    gspo = "my_package.gspo:Gspo"
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

GROUPS = {
    "algorithm": "rlflow.algorithms",
    "task": "rlflow.tasks",
    "policy": "rlflow.policies",
    "suite": "rlflow.suites",
}


class UnknownNameError(ValueError):
    """A name that nothing registered; the message carries the nearest known names."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One registered name.

    Attributes:
        name: Name as the user writes it.
        target: `module:Attr`.
        package: Distribution that offers it.
        argument: Rest of the name where a family (`control`) serves every `control/REST`; else None.
    """

    name: str
    target: str
    package: str
    argument: str | None = None

    def load(self) -> Any:
        """Import the class.

        Raises:
            UnknownNameError: If the target cannot be imported; says which package to mend.
        """
        try:
            return EntryPoint(name=self.name, value=self.target, group="").load()
        except (ImportError, AttributeError) as error:
            raise UnknownNameError(
                f"{self.name!r} is registered by {self.package} as {self.target}, which cannot be imported: {error}"
            ) from error


@cache
def entries(kind: str) -> dict[str, Entry]:
    """All registered names of a kind (`algorithm`, `task`, `policy`, `suite`), sorted."""
    found: dict[str, Entry] = {}
    for point in entry_points(group=GROUPS[kind]):
        package = point.dist.name if point.dist is not None else "?"
        other = found.get(point.name)
        if other is not None and other.target != point.value:
            raise UnknownNameError(
                f"{kind} {point.name!r} is registered twice: {other.target} ({other.package}) and "
                f"{point.value} ({package}); uninstall one of the packages"
            )
        found[point.name] = Entry(name=point.name, target=point.value, package=package)
    return dict(sorted(found.items()))


def find(kind: str, name: str) -> Entry:
    """The entry of `name`, also through a family (`control` serves `control/Hopper-v5`).

    Raises:
        UnknownNameError: With the nearest known names.
    """
    known = entries(kind)
    if name in known:
        return known[name]
    family, _, rest = name.partition("/")
    if rest and family in known:
        entry = known[family]
        return Entry(name=name, target=entry.target, package=entry.package, argument=rest)
    raise UnknownNameError(f"unknown {kind} {name!r}{did_you_mean(name, known)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` or the list of known names, to end an error message with."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if not near:
        # A key without its section is compared with the last part of the known ones.
        last_parts = {option.rpartition(".")[2]: option for option in options}
        near = [last_parts[part] for part in difflib.get_close_matches(name, last_parts, n=3, cutoff=0.5)]
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; known: {', '.join(options) or 'none (is the package installed? pip install -e .)'}"
