"""Claims files: the shipped one against the shipped suites, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlflow.claims import ClaimsError, Comparison, Side, load_claims, parse_claims
from rlflow.registry import entries
from rlflow.suite import load_suite

FILE = """
name: mine
claims:
  - id: first
    paper: A paper
    statement: >
      One thing is better
      than another.
    tests:
      - says: by score
        kind: beats
        of: {suite: toys, task: toy, entrant: ppo}
        than: {entrant: fpo}
      - says: within a margin
        kind: keeps
        margin: 0.1
        metric: eval/quality
        at_equal: eval/score
        of: {suite: toys, task: toy, entrant: ppo, budget: full}
        than: {task: other}
      - {says: rises, kind: beats, of: {suite: toys, task: toy, entrant: ppo}, than: start}
    note: See there.
"""


def test_a_file_is_read_and_what_is_not_said_of_a_side_is_taken_from_the_other() -> None:
    file = parse_claims(FILE, "mine.yaml")
    (claim,) = file.claims
    assert (file.name, claim.id, claim.statement, claim.note) == (
        "mine", "first", "One thing is better than another.", "See there."
    )  # fmt: skip
    ppo = Side(suite="toys", task="toy", entrant="ppo")
    assert claim.tests == (
        Comparison(says="by score", kind="beats", of=ppo, than=Side(suite="toys", task="toy", entrant="fpo")),
        Comparison(
            says="within a margin",
            kind="keeps",
            of=Side(suite="toys", task="toy", entrant="ppo", budget="full"),
            than=Side(suite="toys", task="other", entrant="ppo", budget="full"),
            metric="eval/quality",
            margin=0.1,
            at_equal="eval/score",
        ),
        Comparison(says="rises", kind="beats", of=ppo, than=None),
    )
    assert file.digest != parse_claims(FILE + "\n", "mine.yaml").digest


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("name: mine", "name: [", "not YAML"),
        ("name: mine", "title: mine", "mine.yaml: unknown key 'title'"),
        ("name: mine", "name: ../mine", r"name: expected letters, digits, .* found '\.\./mine'"),
        ("name: mine", "name: mine\nname: yours", "not YAML: key 'name' is there twice"),
        ("claims:", "claims: []\nrest:", "unknown key 'rest'"),
        ("    paper: A paper\n", "", r"claims\[0\]: missing \['paper'\]"),
        ("kind: beats\n        of", "kind: wins\n        of", r"\(first\): tests\[0\]: kind: expected one of"),
        ("margin: 0.1", "margin: 0", r"tests\[1\]: margin: expected a number above 0"),
        ("margin: 0.1", "margin: much", "found 'much'"),
        ("than: {entrant: fpo}", "than: {entrants: fpo}", "unknown key 'entrants'; did you mean entrant"),
        ("than: {entrant: fpo}", "than: {entrant: ppo}", "expected two sides, found ppo on toy"),
        ("than: {entrant: fpo}", "than: fpo", r"than: expected a mapping, found str"),
        (
            "of: {suite: toys, task: toy, entrant: ppo}\n",
            "of: {suite: toys, task: toy}\n",
            r"of: missing \['entrant'\]",
        ),
    ],
)
def test_a_wrong_file_is_told_where_and_what(old: str, new: str, words: str) -> None:
    assert old in FILE
    with pytest.raises(ClaimsError, match=words):
        parse_claims(FILE.replace(old, new, 1), "mine.yaml")


def test_two_claims_of_one_id_and_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    claim = FILE.partition("claims:\n")[2]
    with pytest.raises(ClaimsError, match=r"expected different ids, found \['first'\] more than once"):
        parse_claims(FILE + claim, "mine.yaml")
    with pytest.raises(ClaimsError, match=r"expected a claims file at .*none\.yaml, found none"):
        load_claims(str(tmp_path / "none.yaml"))
    with pytest.raises(ClaimsError, match="'paper'; did you mean papers"):
        load_claims("paper")
    (tmp_path / "latin.yaml").write_bytes("name: Größe".encode("latin-1"))
    with pytest.raises(ClaimsError, match=r"expected a text file at .*latin\.yaml"):
        load_claims(str(tmp_path / "latin.yaml"))
    (tmp_path / "own.yaml").write_text(FILE)
    assert load_claims(str(tmp_path / "own.yaml")) == parse_claims(FILE, "own.yaml")


def test_the_shipped_claims_are_about_cells_of_shipped_suites() -> None:
    suites = {name: load_suite(name) for name in entries("suite")}
    for claim in load_claims("papers").claims:
        for test in claim.tests:
            for side in [test.of, *([test.than] if test.than else [])]:
                suite = suites[side.suite]
                assert (side.entrant in suite.algorithms, side.task in suite.tasks) == (True, True), side
                assert side.budget in suite.budgets
