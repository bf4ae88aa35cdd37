from __future__ import annotations

import pytest
import torch

from rlflow.bucketing import by_length, lengths
from rlflow.rollout import Minibatch

ROUNDED = 1e-6


def ragged(*sizes: int) -> Minibatch:
    """Rows of these lengths in five columns; each target counts its own row and column."""
    width = 5
    mask = torch.arange(width) < torch.tensor(sizes)[:, None]
    rows = len(sizes)
    place = 10.0 * torch.arange(rows)[:, None] + torch.arange(width)
    return Minibatch(
        context={"prompt": torch.arange(rows)},
        action={"token": place.long()},
        mask=mask,
        group=torch.arange(rows),
        reward=place,
        terminated=torch.zeros_like(mask),
        boundary=torch.zeros_like(mask),
        old_log_prob=place.unsqueeze(-1),
        targets={"x": place},
        global_decisions=float(mask.sum()),
        global_rows=float(rows),
    )


def test_rows_of_like_length_go_together_within_the_limit() -> None:
    # Longest first: 5 and 4 fill 2 x 5 = 10 decisions, 3 and 3 and 1 take 3 x 3 = 9.
    parts = list(by_length(ragged(3, 5, 1, 4, 3), 10))
    assert [part.context["prompt"].tolist() for part in parts] == [[1, 3], [0, 4, 2]]
    assert [list(part.mask.shape) for part in parts] == [[2, 5], [3, 3]]
    assert [list(part.old_log_prob.shape) for part in parts] == [[2, 5, 1], [3, 3, 1]]
    assert parts[1].action["token"].tolist() == [[0, 1, 2], [40, 41, 42], [20, 21, 22]]


def test_parts_add_up_to_the_whole() -> None:
    whole = ragged(3, 5, 1, 4, 3)
    parts = list(by_length(whole, 6))
    assert sum(part.num_decisions for part in parts) == 16
    mean = sum(float(part.mean(part.targets["x"])) for part in parts)
    assert mean == pytest.approx(float(whole.mean(whole.targets["x"])), abs=ROUNDED)


def test_a_row_longer_than_the_limit_is_a_part_of_its_own() -> None:
    assert [list(part.mask.shape) for part in by_length(ragged(5, 1, 1), 2)] == [[1, 5], [2, 1]]


def test_a_row_without_trainable_decisions_has_one() -> None:
    # A hole in a row does not shorten it.
    mask = torch.tensor([[False, False, False], [True, False, True], [True, False, False]])
    assert lengths(mask).tolist() == [1, 3, 1]
