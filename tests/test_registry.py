from importlib.metadata import EntryPoint

import pytest

from algorithms.ppo import Ppo
from rlflow import registry
from rlflow.registry import UnknownNameError, did_you_mean, entries, find


@pytest.fixture
def offered(monkeypatch):
    """Makes `entries` see the given entry points and nothing else."""

    def offer(*points):
        made = [EntryPoint(name=name, value=target, group="g") for name, target in points]
        monkeypatch.setattr(registry, "entry_points", lambda group: made)
        entries.cache_clear()

    yield offer
    entries.cache_clear()


def test_built_ins_come_through_entry_points():
    assert {"flow_grpo", "flowrl", "fpo", "ppo", "reinforce_pp"} <= set(entries("algorithm"))
    assert {"image/shapes", "reasoning/countdown", "control/halfcheetah"} <= set(entries("task"))
    assert set(entries("policy")) >= {"flow", "gaussian", "causal_lm"}
    assert list(entries("algorithm")) == sorted(entries("algorithm"))
    assert entries("algorithm")["ppo"].package == "rlflow"
    assert find("algorithm", "ppo").load() is Ppo


def test_families_serve_the_rest_of_a_name_but_exact_names_come_first():
    assert find("task", "control/Walker2d-v5").argument == "Walker2d-v5"
    assert find("task", "control/halfcheetah").argument is None
    with pytest.raises(UnknownNameError, match="unknown task 'image/photos'"):
        find("task", "image/photos")


def test_unknown_names_carry_the_nearest_ones(offered):
    offered(("alpha", "a:A"), ("beta", "b:B"))
    with pytest.raises(UnknownNameError, match=r"unknown algorithm 'alpa'; did you mean alpha\?"):
        find("algorithm", "alpa")
    with pytest.raises(UnknownNameError, match="unknown algorithm 'zzz'; known: alpha, beta"):
        find("algorithm", "zzz")
    offered()
    with pytest.raises(UnknownNameError, match="known: none"):
        find("algorithm", "zzz")
    assert did_you_mean("alpho", ["alpha", "alphi"]) == "; did you mean alphi or alpha?"


def test_two_packages_may_not_offer_one_name(offered):
    offered(("a", "x:A"), ("a", "y:A"))
    with pytest.raises(UnknownNameError, match=r"algorithm 'a' is registered twice: x:A .* and y:A .*; uninstall one"):
        entries("algorithm")


def test_the_same_entry_seen_twice_is_no_conflict(offered):
    # An editable install beside a regular one shows every entry point twice.
    offered(("a", "x:A"), ("a", "x:A"))
    assert list(entries("algorithm")) == ["a"]


@pytest.mark.parametrize("target", ["rlflow.nothing:Here", "rlflow.registry:Nothing"])
def test_a_target_that_cannot_be_imported_names_its_package(offered, target):
    offered(("a", target))
    with pytest.raises(UnknownNameError, match=f"'a' is registered by .* as {target}, which cannot be imported"):
        find("algorithm", "a").load()
