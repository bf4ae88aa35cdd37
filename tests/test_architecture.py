"""The direction algorithms -> rlflow <- tasks, and what no layer may know of another."""

import ast
import re
from pathlib import Path

import pytest

from rlflow.registry import entries

ROOT = Path(__file__).parent.parent
LAYERS = ("rlflow", "algorithms", "tasks")
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
ALLOWED_IMPORTS = {"rlflow": {"rlflow"}, "algorithms": {"algorithms", "rlflow"}, "tasks": {"tasks", "rlflow"}}
MAX_LINES, MAX_ALGORITHM_LINES = 350, 120


def built_in(kind):
    return {name: entry for name, entry in entries(kind).items() if entry.package == "rlflow"}


ALGORITHM_NAMES = {n for name, e in built_in("algorithm").items() for n in (name, e.target.partition(":")[2])}
TASK_ENTRIES = {name: entry for name, entry in built_in("task").items() if entry.target.startswith("tasks.")}
TASK_NAMES = {n for name, e in TASK_ENTRIES.items() for n in (name, name.rpartition("/")[2], e.target.split(":")[1])}
AMBIGUOUS = {"control", "text", "code", "Code"}
"""English words beside a task family or a task."""


def layer_of(path):
    return path.relative_to(ROOT).parts[0]


def name_of(path):
    return str(path.relative_to(ROOT))


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module or ""


def docstrings(tree):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and node.body and isinstance(node.body[0], ast.Expr):
            yield node.body[0].value
    for body in (node.body for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef))):
        yield from (s.value for s in body if isinstance(s, ast.Expr))


def mentions(source):
    """Every identifier and every string constant that is not documentation."""
    tree = ast.parse(source)
    documentation = {id(node) for node in docstrings(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield from re.findall(r"[\w/-]+", node.value)
        for field in ("id", "attr", "name", "arg", "module"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield from [value, *value.split(".")]


def named(source, names):
    wanted = {n.lower() for n in names - AMBIGUOUS}
    return sorted({m for m in mentions(source) if m.lower() in wanted})


def policy_type_tests(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "type", "issubclass"):
            subjects = ast.unparse(node.args[0]) if node.args else ""
            against = ast.unparse(node.args[1]) if len(node.args) > 1 else ""
            if "policy" in subjects.lower() or against.endswith("Policy"):
                yield ast.unparse(node)
        if isinstance(node, (ast.Compare, ast.Match)):
            text = ast.unparse(node.subject if isinstance(node, ast.Match) else node)
            if re.search(r"\btask\.name\b|\btask_name\b|\balgorithm_name\b|__class__", text):
                yield text


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_towards_rlflow(path):
    roots = {name.partition(".")[0] for name in imports(ast.parse(path.read_text()))}
    assert roots & set(LAYERS) <= ALLOWED_IMPORTS[layer_of(path)]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_loads_the_drawing_library_before_it_draws(path):
    body = [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    loaded = {name.partition(".")[0] for node in body for name in imports(ast.Module([node], []))}
    assert "matplotlib" not in loaded


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_layer_names_what_it_must_not_know(path):
    forbidden = {
        "rlflow": ALGORITHM_NAMES | TASK_NAMES,
        "algorithms": TASK_NAMES | {"image", "reasoning", "mujoco", "shapes"},
        "tasks": ALGORITHM_NAMES,
    }[layer_of(path)]
    assert named(path.read_text(), forbidden) == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_asks_for_the_class_of_a_policy_or_the_name_of_a_task(path):
    assert list(policy_type_tests(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_short(path):
    limit = MAX_ALGORITHM_LINES - 1 if layer_of(path) == "algorithms" else MAX_LINES
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize("path", sorted((ROOT / "algorithms").glob("[!_]*.py")), ids=name_of)
def test_an_algorithm_is_one_class_that_inherits_from_the_contract_alone(path):
    classes = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)]
    assert [[ast.unparse(base) for base in c.bases] for c in classes] == [["Algorithm"]]


def test_the_names_looked_for_are_the_registered_ones():
    assert {"flow_grpo", "FlowGrpo", "ppo", "ReinforcePP"} <= ALGORITHM_NAMES
    assert {"image/shapes", "shapes", "reasoning/countdown", "Countdown", "halfcheetah"} <= TASK_NAMES


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = 'image/shapes'", ["image/shapes"]),
        ("from tasks.image import shapes", ["shapes"]),
        ("def f(a): return a.Countdown", ["Countdown"]),
        ("'''About countdown.'''\nx = 1", []),
        ("x = 'the shapes of tensors'", ["shapes"]),
        ("reshapes = 1", []),
    ],
)
def test_a_forbidden_name_is_found(source, found):
    assert named(source, TASK_NAMES) == found


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("isinstance(policy, FlowPolicy)", 1),
        ("isinstance(self.policy, Module)", 1),
        ("isinstance(x, GaussianPolicy)", 1),
        ("if task.name == 'a': pass", 1),
        ("match config.task_name:\n    case 'a': pass", 1),
        ("isinstance(x, Tensor)", 0),
        ("run(task.name)", 0),
    ],
)
def test_a_forbidden_question_is_found(source, count):
    assert len(list(policy_type_tests(ast.parse(source)))) == count
