import torch

from rlflow.totals import Totals


def test_rows_add_up_by_name_and_the_first_is_kept():
    totals = Totals()
    totals.add({"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
    totals.add({"a": torch.tensor(0.5), "b": torch.tensor(4.0)})
    totals.add({"a": torch.tensor(3.0)})
    # a: 1 + .5 + 3, b: 2 + 4
    assert totals.read() == {"a": 4.5, "b": 6.0}
    assert totals.first == {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}


def test_what_is_not_finite_stays():
    totals = Totals()
    for value in (1.0, float("inf"), 2.0):
        totals.add({"a": torch.tensor(value)})
    assert totals.read() == {"a": float("inf")}
