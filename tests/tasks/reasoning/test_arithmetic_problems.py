from __future__ import annotations

import hashlib
from fractions import Fraction

import pytest

from tasks.reasoning.arithmetic_problems import (
    EVALUATION_PER_TEMPLATE,
    MAX_COMPLETION_TOKENS,
    TEMPLATES,
    ArithmeticProblem,
    Plan,
    digest,
    evaluation_digest,
    evaluation_problems,
    instances,
    training_problem,
    training_starts,
    verify,
)

DIGEST = "276ec5b87c4dc84f98604999b7e2b19579aef71e9990ecca0e251ce5e38d0c3c"
NAMES = [template.name for template in TEMPLATES]


def problem(name: str, *numbers: int) -> ArithmeticProblem:
    return ArithmeticProblem(NAMES.index(name), numbers)


@pytest.mark.parametrize(
    ("name", "numbers", "prompt", "solution", "answer"),
    [
        ("buy", (24, 3, 7), "Ann has 24 pens, buys 3 packs of 7>", "3*7=21;24+21=45#45", 45),
        ("sell", (5, 3, 7), "3 boxes of 7 pens, 5 sold>", "3*7=21;21-5=16#16", 16),
        ("lose", (40, 5, 9), "Ann had 40 pens, lost 5, found 9>", "40-5=35;35+9=44#44", 44),
        ("share", (12, 3, 4), "12 pens for 3 boys and 4 girls>", "3+4=7#12/7", Fraction(12, 7)),
        ("half", (11, 2), "half of 11 pens and 2 more>", "2*2=4;11+4=15#15/2", Fraction(15, 2)),
        ("precedence", (10, 2, 3), "10+2*3>", "2*3=6;10+6=16#16", 16),
        ("brackets", (2, 3, 4), "(2+3)*4>", "2+3=5;5*4=20#20", 20),
        ("signs", (30, 4, 5), "30-4+5>", "30-4=26;26+5=31#31", 31),
        ("fractions", (1, 2, 1, 3), "1/2+1/3>", "1*3=3;1*2=2;3+2=5;2*3=6#5/6", Fraction(5, 6)),
    ],
)
def test_every_template_by_hand(
    name: str, numbers: tuple[int, ...], prompt: str, solution: str, answer: Fraction | int
) -> None:
    asked = problem(name, *numbers)
    assert asked.prompt == prompt
    assert asked.answer == answer
    assert TEMPLATES[asked.template].plan.write(asked.named) == solution
    assert verify(asked, solution).correct


def test_words_change_the_prompt_and_not_the_problem() -> None:
    # 16 pairs of a name and a thing; the sixth has the second of each.
    asked = ArithmeticProblem(0, (24, 3, 7), 5)
    assert asked.prompt == "Bob has 24 eggs, buys 3 packs of 7>"
    assert digest(asked) == digest(ArithmeticProblem(0, (24, 3, 7)))
    assert len({ArithmeticProblem(0, (24, 3, 7), words).prompt for words in range(16)}) == 16


@pytest.mark.parametrize("text", ["#5/6", "so#10/12", "1#2#5/6", "#005/6", "1/2+1/3=5/6#5/6"])
def test_equal_fractions_are_correct(text: str) -> None:
    verdict = verify(problem("fractions", 1, 2, 1, 3), text)
    assert verdict.correct
    assert verdict.answer == "5/6"


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("5/6", "unparseable"),
        ("#", "unparseable"),
        ("", "unparseable"),
        ("#5/0", "unparseable"),
        ("#5/-6", "unparseable"),
        ("#5/6 ", "unparseable"),
        ("#0.83", "unparseable"),
        ("#+5/6", "unparseable"),
        ("#5/6<pad>", "unparseable"),
        ("#\u0665/6", "unparseable"),
        ("#5/6/1", "unparseable"),
        ("#9999999999", "unparseable"),
        ("#5/6#", "unparseable"),
        ("#5/6#1", "wrong"),
        ("#-5/6", "wrong"),
        ("#2/5", "wrong"),
    ],
)
def test_failures(text: str, failure: str) -> None:
    asked = problem("fractions", 1, 2, 1, 3)
    assert verify(asked, text).failure == failure
    assert verify(asked, text, finished=False).failure == "unfinished"


def test_an_integer_may_be_written_as_a_fraction() -> None:
    assert verify(problem("precedence", 10, 2, 3), "#32/2").answer == "16"
    assert verify(problem("precedence", 10, 2, 3), "#32/2").correct


@pytest.mark.parametrize("index", range(len(TEMPLATES)), ids=NAMES)
def test_every_plan_writes_what_it_answers_and_no_mistake_is_right(index: int) -> None:
    template = TEMPLATES[index]
    for numbers in [*instances(held_out=False)[index][:200], *instances(held_out=True)[index]]:
        asked = ArithmeticProblem(index, numbers)
        assert verify(asked, template.plan.write(asked.named)).correct
        for mistake in template.mistakes:
            text = mistake.write(asked.named)
            assert verify(asked, text).failure == "wrong"
            # With the end of sequence
            assert len(text) < MAX_COMPLETION_TOKENS
            for step in text.partition("#")[0].split(";"):
                left, _, right = step.partition("=")
                assert eval(left) == int(right)


def test_the_split_is_by_numbers_and_complete() -> None:
    for training, held_out in zip(instances(held_out=False), instances(held_out=True), strict=True):
        assert not set(training) & set(held_out)
        # 15 % of all
        assert len(held_out) == round(0.15 * (len(training) + len(held_out)))
    shown = {(p.template, p.numbers) for p in map(training_problem, training_starts())}
    assert not shown & {(p.template, p.numbers) for p in evaluation_problems()}


def test_training_starts_take_turns() -> None:
    assert [training_problem(start).source for start in range(9)] == NAMES
    assert training_problem(9).source == NAMES[0]
    assert training_problem(9) != training_problem(0)
    with pytest.raises(IndexError, match="training start"):
        training_problem(45_000)


def test_the_frozen_set_is_frozen() -> None:
    problems = evaluation_problems()
    assert len(problems) == len(set(problems)) == EVALUATION_PER_TEMPLATE * 9 == 180
    assert [p.source for p in problems[:9]] == NAMES
    # Of CARD.md; a new set is a new version of the task.
    assert evaluation_digest() == DIGEST
    assert evaluation_digest() == hashlib.sha256("\n".join(p.prompt for p in problems).encode()).hexdigest()


def test_a_plan_by_hand() -> None:
    plan = Plan(("a*d", "c-u"), "v/2")
    # u = 2 * 3 = 6, v = 4 - 6 = -2, answer -1
    assert plan.write({"a": 2, "c": 4, "d": 3}) == "2*3=6;4-6=-2#-2/2"
    assert plan.value({"a": 2, "c": 4, "d": 3}) == -1
