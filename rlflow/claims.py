"""A claims file: statements of papers in testable form, each by comparisons of recorded runs.

    name: papers
    claims:
      - id: reduction
        paper: Flow-GRPO (arXiv 2505.05470), section 4.2
        statement: Training on fewer denoising steps costs no quality and saves time.
        tests:
          - says: eight training steps score as high as twenty
            kind: keeps                    # beats, keeps, matches or cheaper
            margin: 0.03                   # in units of the metric
            of: {suite: claims-image, task: image/shapes, entrant: flow_grpo}
            than: {entrant: flow_grpo-20-steps}     # what is not said here is as in `of`; or `than: start`
            metric: score                  # or guard and cost metrics as MLflow has them, e.g. eval/quality

`than: start` compares with the untrained policy of the same runs.  `at_equal: eval/score` takes the metric of each run
where that other metric first reached what all runs of both sides reached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml

from rlflow.registry import did_you_mean
from rlflow.suite_checks import PLAIN_NAME, PLAIN_WORDS
from rlflow.yaml_text import read_yaml

Kind = Literal["beats", "keeps", "matches", "cheaper"]
KINDS: tuple[str, ...] = get_args(Kind)
WITH_MARGIN = ("keeps", "matches")
START = "start"
SCORE = "score"
DEFAULT_BUDGET = "quick"


class ClaimsError(ValueError):
    """A claims file that cannot be used; says where, what was expected and what was found."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """The runs of one entrant on one task of a suite's budget."""

    suite: str
    budget: str = DEFAULT_BUDGET
    task: str
    entrant: str

    def __str__(self) -> str:
        return f"{self.entrant} on {self.task} ({self.suite}, {self.budget})"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One test of a claim.

    Attributes:
        says: What is shown if it holds.
        kind: `beats`: is larger; `keeps`: is not lower by the margin; `matches`: lies within it; `cheaper`: costs less.
        of: What is judged.
        than: What it is compared with; None for the untrained policy of the same runs.
        metric: `score`, or a metric of the runs.
        margin: Smallest difference that matters, in units of the metric.
        lower_is_better: For `beats` and `keeps` of a metric that should fall.
        at_equal: Metric that is made equal first.
    """

    says: str
    kind: Kind
    of: Side
    than: Side | None
    metric: str = SCORE
    margin: float = 0.0
    lower_is_better: bool = False
    at_equal: str | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of a paper; replicated where all of its tests are."""

    id: str
    paper: str
    statement: str
    tests: tuple[Comparison, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ClaimsFile:
    """A claims file, checked; `digest` is that of its text."""

    name: str
    claims: tuple[Claim, ...]
    digest: str


def load_claims(name: str) -> ClaimsFile:
    """The shipped claims file `name`, or the file where it is a path to a .yaml.

    Raises:
        ClaimsError: There is none, or it is not a claims file.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ClaimsError(f"expected a claims file at {path}, found none")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ClaimsError(f"expected a text file at {path}, found one that cannot be read: {error}") from error
        return parse_claims(text, str(path))
    folder = resources.files("rlflow.claim_files")
    known = sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))
    if name not in known:
        raise ClaimsError(f"expected a path to a .yaml or one of {known}, found {name!r}{did_you_mean(name, known)}")
    return parse_claims((folder / f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml")


def parse_claims(text: str, origin: str) -> ClaimsFile:
    """Check the text of a claims file; `origin` names it in errors."""
    try:
        raw = read_yaml(text)
    except yaml.YAMLError as error:
        raise ClaimsError(f"{origin}: not YAML: {' '.join(str(error).split())}") from error
    values = _fields(raw, origin, required=("name", "claims"))
    claims = [_claim(item, f"{origin}: claims[{i}]") for i, item in enumerate(_items(values["claims"], origin))]
    ids = [claim.id for claim in claims]
    twice = sorted({one for one in ids if ids.count(one) > 1})
    if twice:
        raise ClaimsError(f"{origin}: expected different ids, found {twice} more than once")
    name = str(values["name"])
    if not PLAIN_NAME.fullmatch(name):
        raise ClaimsError(f"{origin}: name: expected {PLAIN_WORDS}, found {name!r}")
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return ClaimsFile(name=name, claims=tuple(claims), digest=digest)


def _claim(raw: object, where: str) -> Claim:
    values = _fields(raw, where, required=("id", "paper", "statement", "tests"), optional=("note",))
    where = f"{where} ({values['id']})"
    tests = [_test(item, f"{where}: tests[{i}]") for i, item in enumerate(_items(values["tests"], where))]
    words = {key: " ".join(str(values.get(key, "")).split()) for key in ("id", "paper", "statement", "note")}
    return Claim(tests=tuple(tests), **words)


def _test(raw: object, where: str) -> Comparison:
    values = _fields(
        raw,
        where,
        required=("says", "kind", "of", "than"),
        optional=("metric", "margin", "lower_is_better", "at_equal"),
    )
    if values["kind"] not in KINDS:
        raise ClaimsError(f"{where}: kind: expected one of {list(KINDS)}, found {values['kind']!r}")
    margin = values.get("margin", 0.0)
    if not isinstance(margin, int | float) or margin < 0 or (values["kind"] in WITH_MARGIN and margin == 0):
        raise ClaimsError(f"{where}: margin: expected a number above 0 for {list(WITH_MARGIN)}, found {margin!r}")
    of = _side(values["of"], f"{where}: of", {})
    than = None if values["than"] == START else _side(values["than"], f"{where}: than", vars(of))
    if than == of:
        raise ClaimsError(f"{where}: expected two sides, found {of} twice")
    at_equal = values.get("at_equal")
    return Comparison(
        says=" ".join(str(values["says"]).split()),
        kind=cast(Kind, values["kind"]),
        of=of,
        than=than,
        metric=str(values.get("metric", SCORE)),
        margin=float(margin),
        lower_is_better=bool(values.get("lower_is_better", False)),
        at_equal=None if at_equal is None else str(at_equal),
    )


def _side(raw: object, where: str, default: Mapping[str, Any]) -> Side:
    names = tuple(Side.__dataclass_fields__)
    values = {**default, **_fields(raw, where, required=(), optional=names)}
    missing = [name for name in names if name not in values and name != "budget"]
    if missing:
        raise ClaimsError(f"{where}: missing {missing}")
    return Side(**{name: str(value) for name, value in values.items()})


def _fields(raw: object, where: str, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise ClaimsError(f"{where}: expected a mapping, found {type(raw).__name__}")
    required, known = list(required), [*required, *optional]
    for key in raw:
        if key not in known:
            raise ClaimsError(f"{where}: unknown key {key!r}{did_you_mean(str(key), known)}")
    missing = [key for key in required if key not in raw]
    if missing:
        raise ClaimsError(f"{where}: missing {missing}")
    return {str(key): value for key, value in raw.items()}


def _items(raw: object, where: str) -> list[Any]:
    if not isinstance(raw, list) or not raw:
        raise ClaimsError(f"{where}: expected a list, found {raw!r}")
    return raw
