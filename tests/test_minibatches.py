from dataclasses import replace

import pytest
import torch

from rlflow import minibatches as module
from rlflow.minibatches import minibatches
from rlflow.random import generator
from tests.fakes import block

EXACT = 1e-6


def rows(num=10, **changes):
    values = torch.arange(float(num))
    return block(values[:, None].tolist(), action={"action": values[:, None, None]}, **changes)


def epoch(rollout, num_parts=3):
    goals = {"goal": 10 * rollout.reward}
    return list(minibatches(rollout, goals, num_parts, generator(0)))


def test_an_epoch_holds_every_row_once_in_the_order_of_its_generator():
    parts = epoch(rows())
    assert [p.num_rollouts for p in parts] == [4, 4, 2]
    assert [p.global_rows for p in parts] == [4.0, 4.0, 2.0]
    order = torch.randperm(10, generator=generator(0))
    assert torch.cat([p.reward[:, 0] for p in parts]).tolist() == order.tolist()
    for p in parts:
        assert torch.equal(p.targets["goal"], 10 * p.reward)
        assert torch.equal(p.action["action"][..., 0], p.reward)


def test_rows_of_a_large_rollout_are_gathered_part_by_part_alike(monkeypatch):
    together = epoch(rows())
    monkeypatch.setattr(module, "MAX_GATHERED_BYTES", 0)
    for one, other in zip(together, epoch(rows()), strict=True):
        assert torch.equal(one.reward, other.reward)
        assert one.global_decisions == other.global_decisions


def test_a_minibatch_counts_its_unmasked_decisions():
    mask = torch.arange(10)[:, None] < 5
    parts = epoch(rows(mask=mask))
    order = torch.randperm(10, generator=generator(0))
    counts = [float((chunk < 5).sum()) for chunk in order.chunk(3)]
    assert [p.global_decisions for p in parts] == [max(n, 1.0) for n in counts]
    assert all(p.unmasked is None for p in parts)
    # The mean of the mask's rows alone.
    part, kept = parts[0], order.chunk(3)[0]
    expected = kept[kept < 5].double().mean() if counts[0] else 0.0
    assert float(part.mean(part.reward)) == pytest.approx(float(expected), abs=EXACT)


def test_a_mask_put_in_place_of_a_full_one_counts():
    part = epoch(rows())[0]
    assert part.unmasked is part.mask
    whole = float(part.mean(part.reward))
    assert whole == pytest.approx(float(part.reward.mean()), abs=EXACT)
    assert float(replace(part, mask=torch.zeros_like(part.mask)).mean(part.reward)) == 0.0
    assert float(part.silent().mean(part.silent().reward)) == 0.0
