from __future__ import annotations

import copy
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from tasks.reasoning import maths_verify
from tasks.reasoning.maths_verify import AnswerPool, Check

TIMEOUT_S = 4.0
# Each is read at once and computed for longer than anybody waits.
HANGING = (
    r"\boxed{9^{9^{9^{9}}}}",
    r"\boxed{(10^{10})!}",
    r"\boxed{\int_0^1 e^{e^{e^{x^x}}} dx}",
    r"\boxed{\binom{10^8}{10^7}}",
)


@pytest.fixture(scope="module")
def pool() -> Iterator[AnswerPool]:
    pool = AnswerPool(num_workers=1, timeout_s=TIMEOUT_S)
    yield pool
    pool.close()


def status(pool: AnswerPool, gold: str, text: str, *, boxed: bool = True) -> str:
    return pool.check([gold], [text], boxed=boxed)[0].status


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("18", r"She sells 9 eggs, so \boxed{18}."),
        ("18", r"\boxed{\$18}"),
        ("18", r"\boxed{18.00}"),
        ("18", r"\boxed{18\text{ dollars}}"),
        ("1,234", r"\boxed{1234}"),
        ("1234", r"\boxed{1,234}"),
        ("1/2", r"\boxed{\dfrac{1}{2}}"),
        ("1/2", r"$\boxed{\tfrac12}$"),
        ("1/2", r"\[\boxed{\frac{2}{4}}\]"),
        ("1/2", r"\boxed {0.5}"),
        ("-3", "\\boxed{\u22123}"),
        ("2", r"\boxed{\boxed{2}}"),
        ("2", r"\boxed{x = 2}"),
        (r"\frac{\pi}{2}", "\\boxed{\u03c0/2}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}"),
        ("[0,1)", r"\boxed{[0, 1)}"),
        (r"1 \pm \sqrt{19}", r"\boxed{1+\sqrt{19}, 1-\sqrt{19}}"),
        ("p - q", r"\boxed{-q + p}"),
        (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}"),
        (r"90^\circ", r"\boxed{90}"),
    ],
)
def test_equal_answers_are_correct(pool: AnswerPool, gold: str, text: str) -> None:
    assert status(pool, gold, text) == "correct"


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("2", r"\boxed{3}"),
        ("2", r"\boxed{-2}"),
        ("2", r"\boxed{1, 2, 3}"),
        ("5", r"\boxed{5 \text{ or } 6}"),
        ("1/3", r"\boxed{0.33}"),
        ("2", r"First \boxed{2}, no: \boxed{3}"),
        ("[0,1)", r"\boxed{[0, 1]}"),
        ("x", r"\boxed{y}"),
        ("2", r"\boxed{2^{1000}}"),
    ],
)
def test_other_answers_are_wrong(pool: AnswerPool, gold: str, text: str) -> None:
    assert status(pool, gold, text) == "wrong"


def test_the_last_box_counts(pool: AnswerPool) -> None:
    assert status(pool, "3", r"\boxed{2}\boxed{3}") == "correct"
    assert status(pool, "2", r"\boxed{2}\boxed{3}") == "wrong"


@pytest.mark.parametrize(
    "text",
    ["", "2", "the answer is 2", r"\boxed{}", r"\boxed{2", "boxed{2}", r"\fbox{2}", r"\boxed{???}", "\\boxed{\uff12}"],
)
def test_what_holds_no_answer_is_unparseable(pool: AnswerPool, text: str) -> None:
    assert pool.check(["2"], [text]) == [Check("unparseable")]


def test_without_the_demand_for_a_box_the_last_number_counts(pool: AnswerPool) -> None:
    assert status(pool, "2", "first 3, the answer is 2", boxed=False) == "correct"
    assert status(pool, "2", r"it is \boxed{3}, not 2", boxed=False) == "wrong"
    assert status(pool, "2", "nothing", boxed=False) == "unparseable"


@pytest.mark.parametrize("text", HANGING)
def test_an_answer_that_hangs_sympy_times_out(text: str) -> None:
    pool = AnswerPool(num_workers=1, timeout_s=0.5)
    assert pool.check(["2"], [text]) == [Check("timeout")]
    pool.close()


def test_answers_beside_a_hanging_one_are_kept() -> None:
    pool = AnswerPool(num_workers=2, timeout_s=1.0)
    texts = [HANGING[0], r"\boxed{2}", HANGING[1], r"\boxed{3}", r"\boxed{100000!}", "-", r"\boxed{2}"]
    found = [check.status for check in pool.check(["2"] * 7, texts)]
    assert found == ["timeout", "correct", "timeout", "wrong", "wrong", "unparseable", "correct"]
    # Both workers were replaced where needed, and the pool goes on.
    assert pool.check(["2"], [r"\boxed{2}"]) == [Check("correct", "2")]
    pool.close()


def test_a_worker_killed_in_between_is_replaced(pool: AnswerPool) -> None:
    assert status(pool, "2", r"\boxed{2}") == "correct"
    (victim,) = pool.process_ids
    os.kill(victim, signal.SIGKILL)
    assert [check.status for check in pool.check(["2", "2"], [r"\boxed{2}", r"\boxed{3}"])] == ["correct", "wrong"]
    assert pool.process_ids != [victim]


def test_an_answer_that_kills_every_worker_is_crashed_and_the_others_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = AnswerPool(num_workers=1, timeout_s=60.0)
    assert status(pool, "2", r"\boxed{2}") == "correct"
    ask, killed = maths_verify._Worker.ask, []

    def kill_on_seven(worker: maths_verify._Worker, question: maths_verify._Question, timeout_s: float) -> None:
        if question.gold == "7":
            killed.append(worker.process.pid)
            worker.process.kill()
            worker.process.wait()
        ask(worker, question, timeout_s)

    monkeypatch.setattr(maths_verify._Worker, "ask", kill_on_seven)
    found = pool.check(["7", "2", "7"], [r"\boxed{7}", r"\boxed{3}", r"\boxed{7}"])
    assert [check.status for check in found] == ["crashed", "wrong", "crashed"]
    # Equal questions are one; it was tried on two processes.
    assert len(set(killed)) == len(killed) == 2
    pool.close()


def test_an_answer_that_needs_too_much_memory_is_not_wrong() -> None:
    pool = AnswerPool(num_workers=1, timeout_s=2.0, memory_gb=0.5)
    assert status(pool, "2", r"\boxed{7^{7^{11}}}") in ("crashed", "timeout")
    assert status(pool, "2", r"\boxed{2}") == "correct"
    pool.close()


def test_the_pool_works_in_a_thread() -> None:
    # math-verify itself raises there: its alarm needs the main thread.
    pool, found = AnswerPool(num_workers=1, timeout_s=TIMEOUT_S), []
    thread = threading.Thread(target=lambda: found.append(status(pool, "2", r"\boxed{2}")))
    thread.start()
    thread.join()
    pool.close()
    assert found == ["correct"]


def test_equal_answers_are_one_vote_and_correct_ones_vote_for_the_reference(pool: AnswerPool) -> None:
    texts = [r"\boxed{0.5}", r"\boxed{\frac{2}{4}}", r"\boxed{\frac{1}{3}}", r"\boxed{1/3}", "none"]
    assert [check.answer for check in pool.check(["1/2"] * 5, texts)] == ["1/2", "1/2", "1/3", "1/3", None]


def test_unreadable_references_are_found(pool: AnswerPool) -> None:
    assert pool.unreadable(["2", "", r"\frac{1}{2}", "???", r"\text{Evelyn}"]) == [1, 3]


def test_copies_share_no_process(pool: AnswerPool) -> None:
    assert status(pool, "2", r"\boxed{2}") == "correct"
    twin = copy.deepcopy(pool)
    assert (twin.num_workers, twin.timeout_s, twin.process_ids) == (1, TIMEOUT_S, [])


def test_close_ends_the_processes(pool: AnswerPool) -> None:
    assert status(pool, "2", r"\boxed{2}") == "correct"
    (worker,) = pool._workers
    pool.close()
    assert worker.process.poll() is not None
    assert pool.process_ids == []


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maths_verify, "WORKER_MODULE", "tasks.reasoning.no_such_worker")
    with pytest.raises(RuntimeError, match="no_such_worker"):
        AnswerPool(num_workers=1).check(["2"], [r"\boxed{2}"])


@pytest.mark.parametrize("values", [{"num_workers": 0}, {"timeout_s": 0.0}, {"memory_gb": -1.0}])
def test_impossible_settings_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="answer pool"):
        AnswerPool(**values)
