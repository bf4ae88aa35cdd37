import threading
from collections.abc import Sequence

import pytest

from tasks.reasoning.judging import VerifierError, judged
from tasks.reasoning.verdict import Completion, Verdict

COMPLETIONS = [Completion(text=text, finished=True, num_tokens=1) for text in ("a", "b", "c")]
RIGHT, WRONG = Verdict(None), Verdict("wrong")


def ask(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return judged(
        lambda problems, _: [*verdicts], "xyz", COMPLETIONS, name="reasoning/mine", failures=("wrong",), limit_s=60.0
    )


def test_verdicts_pass_as_they_are() -> None:
    assert ask([RIGHT, WRONG, RIGHT]) == [RIGHT, WRONG, RIGHT]


@pytest.mark.parametrize("number", [0, 1, 2, 4])
def test_another_number_of_verdicts_ends_the_run(number: int) -> None:
    # One verdict would otherwise be that of every completion.
    with pytest.raises(VerifierError, match=rf"reasoning/mine: expected 3 verdicts .*, found {number}"):
        ask([RIGHT] * number)


def test_a_failure_that_was_not_announced_ends_the_run() -> None:
    with pytest.raises(VerifierError, match=r"one of the failures \['wrong'\], found \['odd'\]"):
        ask([RIGHT, Verdict("odd"), WRONG])


def test_an_error_keeps_its_kind_and_says_whose_it_is() -> None:
    def fails(problems: Sequence[str], completions: Sequence[Completion]) -> list[Verdict]:
        raise ZeroDivisionError("by hand")

    with pytest.raises(ZeroDivisionError, match="by hand") as caught:
        judged(fails, "xyz", COMPLETIONS, name="reasoning/mine", failures=(), limit_s=60.0)
    assert caught.value.__notes__ == ["while reasoning/mine verified 3 completions"]


def test_a_verifier_that_hangs_is_named_with_the_place() -> None:
    over = threading.Event()

    def waits_for_ever(problems: Sequence[str], completions: Sequence[Completion]) -> list[Verdict]:
        over.wait()
        return []

    with pytest.raises(VerifierError, match=r"(?s)task.verify_limit_s=0.2, found .* in waits_for_ever"):
        judged(waits_for_ever, "xyz", COMPLETIONS, name="reasoning/mine", failures=(), limit_s=0.2)
    over.set()
