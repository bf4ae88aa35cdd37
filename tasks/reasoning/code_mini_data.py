"""Which small programs are asked for, which are held out, and how right and mistaken ones are written.

Sequences of steps are held out whole, whatever is done with the list at the end; splits and the evaluation set are
ordered by SHA-256 of a salted text, so they never change with a library's random generator.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from functools import cache

from tasks.reasoning.code_mini import FINALS, HIGHEST, LOWEST, MAX_COMPLETION_TOKENS, CodeMiniProblem

SPLIT_SALT = "rlflow-code-mini-1"
HELD_OUT_FRACTION = 0.15
NUM_EVALUATION_PROMPTS = 150
# Of the eighteen numbers of the hidden lists; with fewer, most lists would ask for nothing.
MIN_NUMBERS_LEFT = 4

MAPS = (*(f"{sign}{k}" for sign in "+-" for k in range(1, 10)), *(f"*{k}" for k in range(2, 6)))
FILTERS = (*(f"{sign}{k}" for sign in "<>" for k in range(2, 10)), "even", "odd")
_OPPOSITE = {"+": "-", "-": "+", "<": ">", ">": "<"}
# Ends that are mistaken for one another.
_NEAR = {"list": "rev", "rev": "sort", "sort": "list", "sum": "len", "len": "sum", "max": "sum"}


@cache
def step_sequences() -> tuple[tuple[str, ...], ...]:
    """A change, a condition, or one of each in either order; two changes if one is a product. Each step matters."""
    sequences: list[tuple[str, ...]] = [(step,) for step in (*MAPS, *FILTERS)]
    sequences += itertools.product(MAPS, FILTERS)
    sequences += itertools.product(FILTERS, MAPS)
    sequences += [pair for pair in itertools.product(MAPS, MAPS) if (pair[0][0] == "*") != (pair[1][0] == "*")]
    return tuple(steps for steps in sequences if _matters(steps))


def _matters(steps: tuple[str, ...]) -> bool:
    """Whether some numbers are left, and others than without any one of the steps."""
    numbers = list(range(LOWEST, HIGHEST + 1))
    left = CodeMiniProblem(steps, "list").run(numbers)
    shorter = [steps[:i] + steps[i + 1 :] for i in range(len(steps))]
    without = [CodeMiniProblem(rest, "list").run(numbers) if rest else numbers for rest in shorter]
    return isinstance(left, list) and len(left) >= MIN_NUMBERS_LEFT and left not in without


@cache
def problems(held_out: bool) -> tuple[CodeMiniProblem, ...]:
    """The problems of one side of the split, without lengths after a change, which it does not matter to."""
    ordered = sorted(step_sequences(), key=_order)
    chosen = set(ordered[: round(HELD_OUT_FRACTION * len(ordered))])
    return tuple(
        CodeMiniProblem(steps, final)
        for steps in step_sequences()
        if (steps in chosen) == held_out
        for final in FINALS
        if not (final == "len" and steps[-1] in MAPS)
    )


def training_starts() -> range:
    """Ids of the training problems."""
    return range(len(problems(held_out=False)))


def training_problem(start: int) -> CodeMiniProblem:
    """The training problem of an id; IndexError where there is none."""
    if start not in training_starts():
        raise IndexError(f"training start: expected 0 to {training_starts()[-1]}, found {start}")
    return problems(held_out=False)[start]


@cache
def evaluation_problems() -> tuple[CodeMiniProblem, ...]:
    """The frozen evaluation set: 150 held-out problems."""
    ordered = sorted(problems(held_out=True), key=lambda problem: _order((problem.prompt,)))
    return tuple(ordered[:NUM_EVALUATION_PROMPTS])


def evaluation_digest() -> str:
    """SHA-256 of the evaluation prompts, one a line: the data digest of the task's version."""
    return hashlib.sha256("\n".join(problem.prompt for problem in evaluation_problems()).encode()).hexdigest()


def solutions(problem: CodeMiniProblem) -> tuple[str, ...]:
    """The right programs that pretraining writes; there are others."""
    written = dict.fromkeys(text for form in _forms(problem) for text in _endings(problem.final, *form))
    return tuple(text for text in written if len(text) < MAX_COMPLETION_TOKENS)


def neighbours(problem: CodeMiniProblem) -> tuple[CodeMiniProblem, ...]:
    """Problems whose right programs are mistakes here: one number or sign off, steps swapped or left out, another end.

    A few of their programs are right here too, such as any end of a list of one number.
    """
    others = [CodeMiniProblem(problem.steps, _NEAR[problem.final])]
    for i, step in enumerate(problem.steps):
        changed = [{"even": "odd", "odd": "even"}.get(step) or _OPPOSITE.get(step[0], "+") + step[1:]]
        if step[1:].isdigit():
            changed += [f"{step[0]}{int(step[1:]) + 1}", f"{step[0]}{int(step[1:]) - 1}"]
        others += [replace(problem, steps=(*problem.steps[:i], new, *problem.steps[i + 1 :])) for new in changed]
    if len(problem.steps) > 1:
        others.append(replace(problem, steps=problem.steps[::-1]))
        others += [replace(problem, steps=(step,)) for step in problem.steps]
    return tuple(others)


def _forms(problem: CodeMiniProblem) -> list[tuple[str, str, str]]:
    """Each way to write the loop: the value, the list, the condition (or none)."""
    maps = [step for step in problem.steps if step in MAPS or step[0] in "+-*"]
    conditions = [step for step in problem.steps if step not in maps]
    values = ["x"]
    for step in maps:
        values = [text for value in values for text in _changed(value, step)]
    if not conditions:
        return [(value, "a", "") for value in values]
    kept = conditions[0]
    if problem.steps[0] == kept:
        return [(value, "a", condition) for value in values for condition in _kept("x", kept)]
    direct = [(value, "a", condition) for value in values for condition in _kept(value, kept)]
    nested = [("y", f"[{value} for x in a]", condition) for value in values for condition in _kept("y", kept)]
    return direct + nested


def _changed(value: str, step: str) -> list[str]:
    inner = value if len(value) == 1 else f"({value})"
    if step[0] == "*":
        return [f"{inner}*{step[1:]}", f"{step[1:]}*{inner}"]
    return [f"{value}{step}", f"{step[1:]}+{value}"] if step[0] == "+" else [f"{value}{step}"]


def _kept(value: str, step: str) -> list[str]:
    if step in ("even", "odd"):
        inner = value if len(value) == 1 else f"({value})"
        return [f"{inner}%2<1", f"{inner}%2==0"] if step == "even" else [f"{inner}%2", f"{inner}%2>0", f"{inner}%2==1"]
    number = int(step[1:])
    if step[0] == ">":
        return [f"{value}>{number}", f"{number}<{value}", f"{value}>={number + 1}"]
    return [f"{value}<{number}", f"{number}>{value}", f"{value}<={number - 1}"]


def _endings(final: str, value: str, source: str, condition: str) -> list[str]:
    variable = "y" if value == "y" else "x"
    # A parenthesis needs no space in front of it.
    test = f" if {condition}".replace("if (", "if(") if condition else ""
    loop = f"for {variable} in {source}{test}".replace("in [", "in[").replace("] if", "]if")
    match final:
        case "list":
            return [f"[{value} {loop}]"]
        case "rev":
            turned = f"for {variable} in a[::-1]{test}"
            return [
                f"[{value} {loop}][::-1]",
                *([f"[{value} {turned}]".replace("] if", "]if")] if source == "a" else []),
            ]
        case "sort":
            return [f"sorted({value} {loop})", f"sorted([{value} {loop}])"]
        case "len":
            return [f"len([{value} {loop}])", f"sum(1 {loop})"]
    return [f"{final}({value} {loop})", f"{final}([{value} {loop}])"]


def _order(item: tuple[str, ...]) -> str:
    return hashlib.sha256(f"{SPLIT_SALT}:{item}".encode()).hexdigest()
