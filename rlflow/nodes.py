"""What a machine has to be like to run seeds of a matrix that another one started: same code, reachable tracking."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from rlflow import provenance
from rlflow.store import TrackingError, check_server

ABSENT = "none"


@dataclass(frozen=True, kw_only=True)
class Demand:
    """A machine as the one that started the matrix.

    Attributes:
        versions: Version by distribution, of Python, and digest of the Python files by package.
        packages: Packages with a digest: rlflow and those of the plugins.
        machine: Name of the machine that started the matrix.
        tracking_uri: MLflow store.
    """

    versions: Mapping[str, str]
    packages: tuple[str, ...]
    machine: str
    tracking_uri: str


def demand(distributions: Iterable[str], modules: Iterable[str], tracking_uri: str) -> Demand:
    """What this machine asks of the others, for plugins that live in `modules` and come with `distributions`."""
    packages = tuple(sorted({"rlflow", *(module.partition(".")[0] for module in modules)}))
    return Demand(
        versions=_versions(sorted(set(distributions)), packages),
        packages=packages,
        machine=provenance.machine(),
        tracking_uri=tracking_uri,
    )


def complaints(wanted: Demand) -> list[str]:
    """What a seed would stumble over on this machine, each as a sentence with its remedy."""
    names = wanted.versions.keys() - {"python", *(_label(package) for package in wanted.packages)}
    found = _versions(sorted(names), wanted.packages)
    differences = [
        f"{name} {found[name]} instead of {version}"
        for name, version in wanted.versions.items()
        if found[name] != version
    ]
    lines = [f"{', '.join(differences)}: install there what is installed here"] if differences else []
    return lines + _tracking_complaints(wanted)


def _tracking_complaints(wanted: Demand) -> list[str]:
    scheme = urlsplit(wanted.tracking_uri).scheme
    if scheme == "sqlite" and provenance.machine() != wanted.machine:
        return [
            f"expected a tracking server that every node reaches, found {wanted.tracking_uri}, a file of "
            f"{wanted.machine}: start `mlflow server --host 0.0.0.0` and give --tracking-uri http://HOST:5000"
        ]
    if scheme in ("http", "https"):
        try:
            check_server(wanted.tracking_uri)
        except TrackingError as error:
            return [str(error)]
    return []


def _versions(distributions: Iterable[str], packages: Iterable[str]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    found |= {name: _version(name) for name in distributions}
    return found | {_label(package): _digest(package) for package in packages}


def _label(package: str) -> str:
    return f"{package}/*.py"


def _version(distribution: str) -> str:
    """Public part of the version: a CPU and a CUDA build of torch may serve one board."""
    try:
        return metadata.version(distribution).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ABSENT


def _digest(package: str) -> str:
    """Tells other code under the same version apart, as a checkout has it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return ABSENT
    root = Path(spec.origin).parent
    files = sorted(root.rglob("*.py")) if spec.submodule_search_locations else [Path(spec.origin)]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]
