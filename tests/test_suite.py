"""Suite files: what is accepted, what is refused with which words, and the layers of a pair."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlflow import suites
from rlflow.config import resolve
from rlflow.registry import UnknownNameError, entries
from rlflow.suite import load_suite, nested, parse_suite
from rlflow.suite_checks import SuiteError

VALID: dict[str, Any] = {
    "name": "toys",
    "version": 3,
    "seeds": 2,
    "algorithms": ["ppo", "fpo"],
    "tasks": {"toy": {"task.kind": "flow"}},
    "settings": {"trainer.num_evaluations": 11, "update.lr": 1e-3},
    "budgets": {
        "smoke": {"settings": {"trainer.num_evaluations": 4}, "tasks": {"toy": {"trainer.budget": 64}}},
        "full": {},
    },
    "overrides": {"fpo": {"toy": {"update.lr": 3e-4}}},
}


def changed(**values: Any) -> str:
    return yaml.safe_dump(VALID | values)


def test_later_layers_win_from_all_pairs_to_one_pair() -> None:
    suite = parse_suite(changed(), "toys.yaml")
    assert suite.layers("fpo", "toy", "smoke") == [
        {"trainer": {"num_evaluations": 11}, "update": {"lr": 1e-3}},
        {"trainer": {"num_evaluations": 4}},
        {"task": {"kind": "flow"}},
        {"trainer": {"budget": 64}},
        {"update": {"lr": 3e-4}},
    ]
    fpo = resolve("fpo", "toy", layers=suite.layers("fpo", "toy", "smoke"))
    ppo = resolve("ppo", "toy", layers=suite.layers("ppo", "toy", "smoke"))
    assert (fpo.update.lr, ppo.update.lr) == (3e-4, 1e-3)
    assert (fpo.trainer.num_evaluations, fpo.trainer.budget, fpo.task.policy_kind) == (4, 64, "flow")


def test_a_variant_is_an_entrant_with_its_algorithms_overrides_and_its_own_settings_on_top() -> None:
    wide = {"name": "fpo-wide", "algorithm": "fpo", "settings": {"algorithm.clip": 0.3}}
    suite = parse_suite(changed(algorithms=["ppo", "fpo", wide]), "toys.yaml")
    assert suite.algorithms == ("ppo", "fpo", "fpo-wide")
    assert [suite.registered(name) for name in suite.algorithms] == ["ppo", "fpo", "fpo"]
    assert suite.layers("fpo-wide", "toy", "smoke")[-2:] == [{"update": {"lr": 3e-4}}, {"algorithm": {"clip": 0.3}}]
    assert suite.layers("fpo", "toy", "smoke")[-1] == {"update": {"lr": 3e-4}}


def test_budgets_are_boards_of_their_own() -> None:
    suite = parse_suite(changed(), "toys.yaml")
    assert suite.experiment("smoke") == "toys@3-smoke"
    assert suite.experiment("full") == "toys@3-full"


def test_the_digest_follows_the_text() -> None:
    assert parse_suite(changed(), "a").digest == parse_suite(changed(), "b").digest
    assert parse_suite(changed(), "a").digest != parse_suite(changed(seeds=3), "a").digest


def test_nested_shares_sections() -> None:
    assert nested({"a.b": 1, "a.c.d": 2, "e.f": 3}) == {"a": {"b": 1, "c": {"d": 2}}, "e": {"f": 3}}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sedes": 2}, "unknown key 'sedes'; did you mean seeds"),
        ({"seeds": 0}, "seeds: expected a number of at least 1, found 0"),
        ({"division": "half"}, "division: expected one of ['closed', 'open'], found 'half'"),
        ({"statistics": 9}, "statistics: expected one of [1], found 9"),
        ({"algorithms": ["ppo", "ppo"]}, "expected a list of different names"),
        ({"algorithms": ["ppo", "fpo", {"name": "x", "algorithm": "ppo"}]}, "expected a variant with ['name', 'algori"),
        ({"algorithms": ["ppo", "fpo", {"nam": "x"}]}, "algorithms: unknown key 'nam'; did you mean name?"),
        ({"budgets": {}}, "budgets: expected at least one"),
        ({"budgets": {"smoke": {"task": {}}}}, "budgets.smoke: unknown key 'task'; did you mean tasks?"),
        ({"budgets": {"smoke": {"tasks": {"tyo": {}}}}}, "budgets.smoke.tasks: unknown key 'tyo'; did you mean toy?"),
        ({"settings": {"lr": 1}}, "expected dotted keys with plain values"),
        ({"settings": {"update.lr": {"a": 1}}}, "expected dotted keys with plain values"),
        ({"overrides": {"pqo": {}}}, "overrides: unknown key 'pqo'; did you mean"),
        ({"name": "my/suite"}, "name: expected letters, digits, '.', '_', '+' and '-', found 'my/suite'"),
        ({"version": "1@2"}, "version: expected letters, digits, '.', '_', '+' and '-', found '1@2'"),
        ({"budgets": {"../up": {}}}, "budgets.../up: expected letters, digits, '.', '_', '+' and '-', found '../up'"),
        ({"tasks": {}}, "tasks: expected at least one, found none"),
        ({"tasks": ["toy"]}, "tasks: expected a mapping, found list"),
        (
            {"overrides": {"ppo": {"toy": {f"update.k{i}": i for i in range(5)}}}},
            "overrides.ppo.toy: expected at most 4 keys, found 5",
        ),
    ],
)
def test_faults_are_named_with_their_place(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SuiteError) as caught:
        parse_suite(changed(**values), "toys.yaml")
    assert str(caught.value).startswith("toys.yaml")
    assert words in str(caught.value)


def test_a_variant_has_no_overrides_of_its_own() -> None:
    variant = {"name": "wide", "algorithm": "ppo", "settings": {"algorithm.clip": 0.4}}
    entrants = ["ppo", "fpo", variant]
    with pytest.raises(SuiteError, match=r"overrides: unknown key 'wide'"):
        parse_suite(changed(algorithms=entrants, overrides={"wide": {"toy": {"update.lr": 1.0}}}), "toys.yaml")
    # Those of its algorithm are its own too, where that algorithm is no entrant.
    alone = changed(algorithms=[variant], overrides={"ppo": {"toy": {"update.lr": 0.5}}})
    layers = parse_suite(alone, "toys.yaml").layers("wide", "toy", "full")
    assert {"update": {"lr": 0.5}} in layers


def test_a_key_that_is_there_twice_is_refused() -> None:
    with pytest.raises(SuiteError, match=r"toys.yaml: not YAML: key 'seeds' is there twice .*line 2"):
        parse_suite("seeds: 1\nseeds: 5\n", "toys.yaml")


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown algorithm 'pppo'; did you mean ppo"):
        parse_suite(changed(algorithms=["pppo"], overrides={}), "toys.yaml")
    with pytest.raises(UnknownNameError, match=r"unknown suite 'cores'; did you mean core"):
        load_suite("cores")
    with pytest.raises(SuiteError, match=r"no budget 'ful'; did you mean full"):
        parse_suite(changed(), "toys.yaml").layers("ppo", "toy", "ful")


def test_what_is_not_a_suite_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="expected a suite file at"):
        load_suite(str(tmp_path / "absent.yaml"))
    (tmp_path / "latin.yaml").write_bytes("name: Größe".encode("latin-1"))
    with pytest.raises(SuiteError, match=r"expected a text file at .*latin.yaml"):
        load_suite(str(tmp_path / "latin.yaml"))
    with pytest.raises(SuiteError, match="not YAML"):
        parse_suite("a: [", "broken.yaml")
    with pytest.raises(SuiteError, match="expected a mapping, found list"):
        parse_suite("[1]", "list.yaml")
    with pytest.raises(SuiteError, match=r"missing \['version', 'algorithms'"):
        parse_suite("name: x", "short.yaml")


def test_a_path_is_loaded_like_a_registered_name(tmp_path: Path) -> None:
    path = tmp_path / "toys.yaml"
    path.write_text(changed())
    assert load_suite(str(path)).algorithms == ("ppo", "fpo")


SHIPPED = sorted(name for name, entry in entries("suite").items() if entry.target == "rlflow.suites")


def test_the_shipped_suites_are_registered() -> None:
    files = {path.stem for path in Path(suites.__file__).parent.glob("*.yaml")}
    assert set(SHIPPED) == files
    assert files >= {"core", "control-gym", "image", "image-text", "reasoning", "smoke", "claims-image"}
    core = load_suite("core")
    assert (len(core.algorithms), len(core.tasks)) == (5, 3)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_pair_of_a_shipped_suite_resolves_under_equal_conditions(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    for budget, task in product(suite.budgets, suite.tasks):
        grids = set()
        for entrant in suite.algorithms:
            config = resolve(suite.registered(entrant), task, layers=suite.layers(entrant, task, budget))
            policy = config.task.policy_kind if suite.division == "closed" else ""
            grids.add((config.trainer.budget, config.trainer.num_evaluations, policy))
            # The board takes the last three evaluations and needs the untrained policy apart from them.
            assert config.trainer.num_evaluations >= 4
            assert config.num_iterations >= config.trainer.num_evaluations - 1
        # One budget and one evaluation grid for all algorithms, and one policy where conditions are closed.
        assert len(grids) == 1
