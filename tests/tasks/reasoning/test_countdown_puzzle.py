from __future__ import annotations

import itertools
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.reasoning.countdown_data import solutions
from tasks.reasoning.countdown_puzzle import (
    FAILURES,
    MAX_COMPLETION_TOKENS,
    Failure,
    Puzzle,
    canonical,
    verify,
    write,
)

PUZZLE = Puzzle((4, 3, 7, 1), 14)
ALPHABET = "0123456789+-*=,;:> "

chains = st.tuples(
    st.sampled_from(PUZZLE.pool),
    st.lists(st.tuples(st.sampled_from("+-*"), st.sampled_from(PUZZLE.pool)), min_size=1, max_size=3).map(tuple),
)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("4+7=11,3;11+3=14,0", "+3+4+7"),
        ("7+7=14,0", "+7+7"),
        ("7*3=21,-7;21-7=14,0", "+3*7-7"),
        # (4 - 3) * 7 = 7, 7 + 7 = 14
        ("4-3=1,13;1*7=7,7;7+7=14,0", "+(+4-3)*7+7"),
        # Passing through the target is allowed as long as the chain ends on it.
        ("7+7=14,0;14*1=14,0", "(+7+7)*1"),
    ],
)
def test_correct_solutions(completion: str, expected: str) -> None:
    verdict = verify(PUZZLE, completion)
    assert verdict.correct
    assert verdict.failure is None
    assert verdict.canonical == expected


@pytest.mark.parametrize(
    ("completion", "failure"),
    [
        ("", "format"),
        (";", "format"),
        ("7+7=14,0;", "format"),
        (";7+7=14,0", "format"),
        ("4+7=11,3;;11+3=14,0", "format"),
        (" 7+7=14,0", "format"),
        ("7+7=14,0 ", "format"),
        ("7 +7=14,0", "format"),
        ("7+7=14,0\n", "format"),
        ("\n7+7=14,0", "format"),
        ("7+7=14,0\x00", "format"),
        ("07+7=14,0", "format"),
        ("7+07=14,0", "format"),
        ("7+7=014,0", "format"),
        ("7+7=14,00", "format"),
        ("7+7=14,-0", "format"),
        ("7+7=14,+0", "format"),
        ("+7+7=14,0", "format"),
        ("7+7=+14,0", "format"),
        ("-7+7=14,0", "format"),
        ("7--7=14,0", "format"),
        ("7+7=14.0,0", "format"),
        ("7+7=1_4,0", "format"),
        ("7+7=14", "format"),
        ("7+7=14,", "format"),
        ("7+7,0", "format"),
        ("7/7=1,13", "format"),
        ("14", "format"),
        ("7+7=14,0<eos>", "format"),
        ("7+7=14,0<pad>", "format"),
        # Arabic-Indic, fullwidth and superscript digits, a fullwidth plus, a true minus sign, a line separator
        ("\u0667+\u0667=\u0661\u0664,\u0660", "format"),
        ("\uff17+7=14,0", "format"),
        ("7+7=14,\u2070", "format"),
        ("7\uff0b7=14,0", "format"),
        ("7\u22127=14,0", "format"),
        ("7+7=14,0\u2028", "format"),
        ("4371:14>7+7=14,0", "format"),
        ("7+7=14,0" * 500, "format"),
        ("9" * 5000 + "+7=14,0", "format"),
        ("7+7=14,0;14*1=14,0;14*1=14,0;14*1=14,0", "nsteps"),
        ("9+5=14,0", "pool"),
        ("7*2=14,0", "pool"),
        ("13+1=14,0", "pool"),
        ("0+7=7,7;7+7=14,0", "pool"),
        ("7+0=7,7;7+7=14,0", "pool"),
        ("7+7=14,0;14+0=14,0", "pool"),
        # 11 is a result, not a digit of the pool
        ("4+7=11,3;3+11=14,0", "pool"),
        ("4+7=11,3;7+7=14,0", "chain"),
        ("4+7=11,3;12+3=15,-1", "chain"),
        ("7+4=14,0", "arith"),
        ("7+7=15,-1", "arith"),
        ("7-7=0,14;0*7=0,14", "arith"),
        ("3-7=-4,18;-4+7=3,11", "format"),
        ("3-7=-4,18", "arith"),
        ("7*7=49,-35;49*3=147,-133", "arith"),
        ("7+7=14,1", "gap"),
        ("4+7=11,4;11+3=14,0", "gap"),
        ("4+7=11,-3;11+3=14,0", "gap"),
        ("7*7=49,35", "gap"),
        ("4+7=11,3", "target"),
        ("7*7=49,-35", "target"),
    ],
)
def test_failures_are_named(completion: str, failure: Failure) -> None:
    verdict = verify(PUZZLE, completion)
    assert verdict.failure == failure
    assert verdict.canonical is None
    assert not verdict.correct


def test_unfinished_comes_before_everything() -> None:
    assert verify(PUZZLE, "7+7=14,0", finished=False).failure == "unfinished"
    assert verify(PUZZLE, "", finished=False).failure == "unfinished"


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=ALPHABET, max_size=40) | st.text(max_size=40))
def test_any_text_gets_a_verdict(completion: str) -> None:
    verdict = verify(PUZZLE, completion)
    assert verdict.failure in FAILURES or verdict.correct


@settings(max_examples=300, deadline=None)
@given(chains)
def test_a_written_chain_fails_only_by_range_or_target(chain: tuple[int, tuple[tuple[str, int], ...]]) -> None:
    results = list(
        itertools.accumulate(
            chain[1], lambda acc, s: {"+": acc + s[1], "-": acc - s[1], "*": acc * s[1]}[s[0]], initial=chain[0]
        )
    )[1:]
    verdict = verify(PUZZLE, write(PUZZLE, *chain))
    if all(1 <= r <= 99 for r in results):
        assert verdict.failure == (None if results[-1] == 14 else "target")
    else:
        assert verdict.failure in ("arith", "format")


edits = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "delete", "splice"]), st.integers(0, 40), st.sampled_from(ALPHABET)
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10_000), edits)
def test_what_passes_is_exactly_what_the_enumeration_writes(
    one: int, other: int, changes: list[tuple[str, int, str]]
) -> None:
    accepted = written_solutions()
    text, donor = accepted[one % len(accepted)], accepted[other % len(accepted)]
    assert verify(PUZZLE, text).correct
    for how, at, character in changes:
        at = min(at, len(text))
        if how == "splice":
            text = text[:at] + donor[at:]
        else:
            middle = "" if how == "delete" else character
            text = text[:at] + middle + text[at + (how != "insert") :]
    assert verify(PUZZLE, text).correct == (text in accepted)


@cache
def written_solutions() -> list[str]:
    return [write(PUZZLE, *chain) for chain in solutions(PUZZLE)]


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ((4, (("+", 7), ("-", 3))), (7, (("-", 3), ("+", 4))), True),
        ((4, (("*", 7), ("*", 3))), (3, (("*", 4), ("*", 7))), True),
        ((4, (("*", 7), ("+", 3))), (7, (("*", 4), ("+", 3))), True),
        ((4, (("+", 7), ("*", 3))), (7, (("+", 4), ("*", 3))), True),
        ((4, (("*", 7), ("+", 3))), (4, (("+", 3), ("*", 7))), False),
        ((4, (("+", 7),)), (4, (("+", 7), ("*", 1))), False),
        ((7, (("-", 4),)), (4, (("-", 7),)), False),
        ((4, (("+", 7), ("+", 4), ("-", 4))), (4, (("+", 7),)), False),
        ((4, (("+", 7), ("*", 3), ("+", 1))), (7, (("+", 4), ("*", 3), ("+", 1))), True),
    ],
)
def test_canonical_form_joins_only_commuted_chains(
    left: tuple[int, tuple[tuple[str, int], ...]], right: tuple[int, tuple[tuple[str, int], ...]], same: bool
) -> None:
    assert (canonical(*left) == canonical(*right)) == same


@settings(max_examples=300, deadline=None)
@given(chains)
def test_canonical_form_keeps_the_value(chain: tuple[int, tuple[tuple[str, int], ...]]) -> None:
    value = chain[0]
    for operator, digit in chain[1]:
        value = {"+": value + digit, "-": value - digit, "*": value * digit}[operator]
    assert eval(canonical(*chain)) == value


def test_prompt_round_trip() -> None:
    assert PUZZLE.prompt == "4371:14>"
    assert Puzzle.parse("4371:14>") == PUZZLE


@pytest.mark.parametrize(
    "prompt", ["437:14>", "43711:14>", "4331:14>", "4301:14>", "4371:9>", "4371:51>", "4371:14", "4371:14>\n", ""]
)
def test_broken_prompts_are_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Puzzle.parse(prompt)


def test_the_longest_legal_chain_fits() -> None:
    # 9*9=81,-71 / 81+9=90,-80 / 90+9=99,-89 with two ';' and the end of sequence: 10 + 11 + 11 + 2 + 1 = 35
    longest = write(Puzzle((9, 8, 7, 6), 10), 9, (("*", 9), ("+", 9), ("+", 9)))
    assert longest == "9*9=81,-71;81+9=90,-80;90+9=99,-89"
    assert len(longest) + 1 == 35 < MAX_COMPLETION_TOKENS
