"""What is read of the environment."""

from __future__ import annotations

from importlib import metadata

from rlflow.provenance import environment


def test_every_installed_distribution_is_listed_with_its_version() -> None:
    found = environment().splitlines()
    assert [line.partition("==")[0] for line in found[:2]] == ["python", "platform"]
    assert set(found[2:]) == {f"{dist.name.lower()}=={dist.version}" for dist in metadata.distributions() if dist.name}
    assert found[2:] == sorted(found[2:])
