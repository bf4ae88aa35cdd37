import pytest
import torch

from rlflow.averaging import AveragedWeights
from tests.fakes import fit, toy_loop

EXACT = 1e-6


def test_averaged_weights_by_hand():
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    averaged = AveragedWeights(layer, 0.75)
    layer.weight.data.fill_(3.0)
    averaged.update()
    # .75*1 + .25*3 = 1.5; once more 1.875
    assert float(averaged.values[0]) == pytest.approx(1.5, abs=EXACT)
    averaged.update()
    with averaged.in_place():
        assert float(layer.weight.detach()) == pytest.approx(1.875, abs=EXACT)
    assert float(layer.weight.detach()) == 3.0
    assert AveragedWeights(layer, 0.0).values == []


def test_the_averaged_weights_are_the_evaluated_ones(tmp_path):
    loop = toy_loop("ppo", tmp_path, "update.ema=0.9", "update.lr=0.05")
    seen, judged = [], loop.task.evaluate

    def evaluate(policy, noise):
        seen.append([p.detach().clone() for p in loop.averaged.parameters])
        return judged(policy, noise)

    loop.task.evaluate = evaluate
    fit(loop)
    for found, average, trained in zip(seen[-1], loop.averaged.values, loop.averaged.parameters, strict=True):
        assert torch.equal(found, average)
        assert not torch.equal(found, trained)
    assert not torch.equal(seen[0][0], seen[-1][0])
