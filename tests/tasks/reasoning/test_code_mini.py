from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.reasoning.code_interpreter import MAX_LENGTH, Refused, TooLong, compile_expression
from tasks.reasoning.code_mini import (
    FAILURES,
    HIGHEST,
    LOWEST,
    MAX_COMPLETION_TOKENS,
    CodeMiniProblem,
    as_program,
    canonical,
    expected,
    hidden_lists,
    hidden_tests,
    verify,
)
from tasks.reasoning.code_mini_data import (
    evaluation_digest,
    evaluation_problems,
    neighbours,
    problems,
    solutions,
    training_problem,
    training_starts,
)
from tests.sandboxes import sandbox

PROBLEM = CodeMiniProblem(("*2", ">7"), "sum")
every_problem = st.sampled_from(problems(held_out=False) + problems(held_out=True))


@pytest.mark.parametrize(
    ("prompt", "values", "answer"),
    [
        # 2, 8, 10, 6 doubled from 1, 4, 5, 3; 8 and 10 are above 7.
        ("*2,>7,sum:", [1, 4, 5, 3], 18),
        (">3,*2,list:", [1, 4, 5, 3], [8, 10]),
        ("+1,even,rev:", [1, 4, 5, 3], [4, 6, 2]),
        ("odd,-2,sort:", [1, 4, 5, 3], [-1, 1, 3]),
        ("<4,len:", [1, 4, 5, 3], 2),
        ("*3,+1,max:", [1, 4, 5, 3], 16),
        ("odd,sum:", [-3, -2], -3),
    ],
)
def test_what_a_problem_asks_for(prompt: str, values: list[int], answer: list[int] | int) -> None:
    problem = CodeMiniProblem.parse(prompt)
    assert problem.prompt == prompt
    assert problem.run(values) == answer


@pytest.mark.parametrize("prompt", ["*2,>7,sum", "sum:", "*2,total:", "/2,sum:", "*,sum:", ""])
def test_what_is_no_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        CodeMiniProblem.parse(prompt)


@pytest.mark.parametrize(
    ("completion", "failure"),
    [
        ("sum(x*2 for x in a if x*2>7)", None),
        ("sum([y for y in[2*x for x in a]if 7<y])", None),
        ("2*sum(x for x in a if x>3)", None),
        ("sum(x+x for x in a if not x<4)", None),
        ("sum(sorted(x*2 for x in a if 7<x*2<99))", None),
        ("sum(x*2*(x>3) for x in a)", None),
        ("sum(max(x*2,7)for x in a)-7*len([x for x in a if x<4])", None),
        ("", "syntax"),
        ("sum(x*2", "syntax"),
        ("x=1", "syntax"),
        ("return 1", "syntax"),
        ("sum(x*2 for x in a if x>7)", "wrong"),
        ("[x*2 for x in a if x*2>7]", "wrong"),
        ("len([x for x in a if x>3])", "wrong"),
        ("0", "wrong"),
        ("(x for x in a)", "wrong"),
        ("a[99]", "runtime"),
        ("max(a)", "runtime"),
        ("b", "runtime"),
        ("sum(1//0 for x in a)", "wrong"),
        ("sum(1//(x-x) for x in a)", "wrong"),
        ("1//0", "runtime"),
        ("len(x for x in a)", "runtime"),
        ("len(3)", "runtime"),
        ("a(3)", "forbidden"),
        ("a+a", "forbidden"),
        ("a*9", "forbidden"),
        ("'a'", "forbidden"),
        ("a.pop()", "forbidden"),
        ("open(0)", "forbidden"),
        ("__import__('os')", "forbidden"),
        ("lambda:0", "forbidden"),
        ("(a:=1)", "forbidden"),
        ("2**9**9**9", "forbidden"),
        ("{x for x in a}", "forbidden"),
        ("[x for x in a for y in a]", "forbidden"),
        ("sorted(a,key=abs)", "forbidden"),
        ("sum(*a)", "forbidden"),
        ("1.5", "forbidden"),
        ("True", "forbidden"),
        ("a" * 65, "forbidden"),
        ("9999999999", "forbidden"),
        ("99999999*99999999", "steps"),
        ("sum(0*len([[[x for x in a]for y in a]for z in a])for v in a)", "steps"),
    ],
)
def test_verdicts(completion: str, failure: str | None) -> None:
    if completion in ("sum(1//0 for x in a)", "sum(1//(x-x) for x in a)"):
        # The first hidden list is empty, so the first that counts raises.
        failure = "runtime"
    verdict = verify(PROBLEM, completion)
    assert verdict.failure == failure
    assert (verdict.canonical is None) == (failure is not None)
    assert failure is None or failure in FAILURES
    assert verify(PROBLEM, completion, finished=False).failure == "unfinished"


def test_steps_are_counted_anew_for_each_list() -> None:
    program = compile_expression("[[x for x in a]for y in a]")
    # 40 + 40 * 40 = 1,640 steps, below 2,000; 45 + 45 * 45 = 2,070.
    assert len(program(list(range(40)))) == len(program(list(range(40)))) == 40
    with pytest.raises(TooLong):
        program(list(range(45)))


def test_the_argument_is_not_shared() -> None:
    values = [3, 1]
    assert compile_expression("sorted(a)")(values) == [1, 3]
    assert values == [3, 1]


@given(st.text(alphabet="0123456789+-*<>=%,:[]() adefilmnorstuvxy", max_size=MAX_LENGTH))
@settings(max_examples=300, deadline=None)
def test_any_text_of_the_alphabet_has_a_verdict(text: str) -> None:
    assert verify(PROBLEM, text).failure in (None, *FAILURES)


@given(every_problem)
@settings(max_examples=60, deadline=None)
def test_every_written_solution_is_right_and_fits(problem: CodeMiniProblem) -> None:
    written = solutions(problem)
    assert len(set(written)) == len(written) >= 1
    assert all(verify(problem, text).correct for text in written)
    # One token is the end of sequence.
    assert max(map(len, written)) < MAX_COMPLETION_TOKENS
    assert CodeMiniProblem.parse(problem.prompt) == problem


@given(every_problem)
@settings(max_examples=60, deadline=None)
def test_hidden_lists_tell_a_problem_from_its_neighbours(problem: CodeMiniProblem) -> None:
    """A program that passes the hidden lists is right on lists that nobody chose."""
    numbers = random.Random(problem.prompt)
    others = [[numbers.randint(LOWEST, HIGHEST) for _ in range(numbers.randint(1, 9))] for _ in range(300)]
    caught = 0
    for other in neighbours(problem):
        if verify(problem, solutions(other)[0]).correct:
            for values in others:
                kept = [CodeMiniProblem(steps, "list").run(values) for steps in (problem.steps, other.steps)]
                if problem.final == "max" and not kept[0]:
                    continue
                assert kept[1] or problem.final != "max"
                assert compile_expression(solutions(other)[0])(values) == problem.run(values)
        else:
            caught += 1
    assert caught


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("sum(x*2 for x in a)", "sum([2*y for y in a])", True),
        ("[x for x in a if x>3]", "[y for y in a if 3<y]", True),
        ("[y for y in[x+1 for x in a]if y>3]", "[x for x in [1+y for y in a] if 3<x]", True),
        ("sum(x for x in a if x>3)", "sum(x for x in a if x>=4)", False),
        ("sum(x*2 for x in a)", "sum(x+x for x in a)", False),
        ("len([x for x in a])", "len(a)", False),
        ("[x-1 for x in a]", "[1-x for x in a]", False),
    ],
)
def test_canonical_forms(first: str, second: str, same: bool) -> None:
    assert (canonical(first) == canonical(second)) is same


def test_the_split_holds_out_whole_sequences_of_steps() -> None:
    train, held_out = problems(held_out=False), problems(held_out=True)
    assert not {problem.steps for problem in train} & {problem.steps for problem in held_out}
    # 15 % of 878 sequences are held out; up to six ends each.
    assert len({problem.steps for problem in held_out}) == 132
    assert (len(train), len(held_out)) == (3994, 712)
    assert len(evaluation_problems()) == 150
    assert set(evaluation_problems()) <= set(held_out)
    assert {problem.final for problem in evaluation_problems()} == {"list", "rev", "sort", "sum", "len", "max"}
    assert training_problem(training_starts()[-1]) == train[-1]
    with pytest.raises(IndexError, match="expected 0 to 3993, found 3994"):
        training_problem(3994)


def test_the_data_are_frozen() -> None:
    """A change of either digest is a new version of the task."""
    assert len(hidden_lists()) == 20
    assert hidden_lists()[3] == (10, 13, -1, 10)
    assert evaluation_digest() == "20189fc098c2df48896ab8ebc5daa4842b2e05fb5f49a514779cdef0bb98f506"
    assert min(len(expected(problem)) for problem in problems(held_out=False)) == 5


def test_the_verifier_agrees_with_the_sandbox() -> None:
    """Right and mistaken programs, half of them with a symbol changed, get the same verdict from both."""
    numbers = random.Random(0)
    jobs = []
    for _ in range(24):
        problem = numbers.choice(problems(held_out=True))
        text = numbers.choice(solutions(numbers.choice([problem, *neighbours(problem)])))
        if numbers.random() < 0.5:
            place = numbers.randrange(len(text))
            text = text[:place] + numbers.choice("0123456789+-*<>=%[]() xya") + text[place + 1 :]
        jobs.append((problem, text))
    verdicts = sandbox(workers=2).verdicts([(as_program(text), hidden_tests(problem)) for problem, text in jobs])
    ours = [verify(problem, text) for problem, text in jobs]
    assert len({verdict.failure for verdict in ours}) >= 3
    for (problem, text), mine, theirs in zip(jobs, ours, verdicts, strict=True):
        if mine.failure not in ("forbidden", "steps"):
            assert mine.correct == theirs.passed, (problem, text, mine, theirs)


def test_refusals_name_the_part() -> None:
    with pytest.raises(Refused, match="Attribute is not part"):
        compile_expression("[x.real for x in a]")
