import numpy as np
import torch

from rlflow.policies.heads import ContextHead, RunningNorm, mlp, partition_mlp
from rlflow.random import generator

EXACT = 1e-6
ROUNDED = 1e-10


def test_mlp_is_orthogonal_with_the_documented_gains():
    net = mlp([8, 4, 2], output_gain=0.01)
    first, last = net[0].weight, net[2].weight
    # Rows of an orthogonal matrix times the gain: W W^T = gain^2 I, 2 for hidden layers and 1e-4 for the output.
    assert torch.allclose(first @ first.T, 2 * torch.eye(4), atol=EXACT)
    assert torch.allclose(last @ last.T, 1e-4 * torch.eye(2), atol=EXACT)
    assert float(net[0].bias.abs().max()) == 0.0
    assert len(net) == 3


def test_partition_starts_at_zero_and_has_the_papers_layers():
    net = partition_mlp(6, hidden=5, dropout=0.1)
    assert net(torch.randn(3, 6)).tolist() == [[0.0]] * 3
    names = [type(layer).__name__ for layer in net]
    assert names == ["Linear", "GELU", "LayerNorm", "Dropout"] * 2 + ["Linear"]


def test_context_head_reads_features_of_the_context():
    head = ContextHead(lambda context: context["a"] + 1, torch.nn.Identity())
    assert head({"a": torch.tensor([[1.0], [2.0]])}).tolist() == [2.0, 3.0]


def test_running_norm_equals_numpy_over_everything_seen():
    norm, parts = RunningNorm((3,)), []
    for k in range(5):
        parts.append(100.0 * k + torch.randn(7, 2, 3, generator=generator(k), dtype=torch.float64))
        norm.update(parts[-1])
    rows = torch.cat([p.reshape(-1, 3) for p in parts]).numpy()
    assert int(norm.count) == 70
    assert np.allclose(norm.mean.numpy(), rows.mean(0), rtol=ROUNDED)
    assert np.allclose(norm.variance.numpy(), rows.var(0), rtol=ROUNDED)


def test_running_norm_normalises_and_clips_at_ten():
    norm = RunningNorm((1,))
    # Before any update: mean 0, variance 1.
    assert norm(torch.tensor([[3.0], [50.0], [-50.0]])).tolist() == [[3.0], [10.0], [-10.0]]
    norm.update(torch.tensor([[2.0], [4.0]]))
    # Mean 3, std 1: 5 -> 2
    assert torch.allclose(norm(torch.tensor([[5.0]])), torch.tensor([[2.0]]), atol=EXACT)


def test_running_norm_is_saved_with_the_weights():
    norm, other = RunningNorm((2,)), RunningNorm((2,))
    norm.update(torch.randn(9, 2, generator=generator(0)))
    other.load_state_dict(norm.state_dict())
    x = torch.randn(4, 2, generator=generator(1))
    assert torch.equal(norm(x), other(x))


def test_running_norm_follows_what_is_loaded_and_saves_nothing_that_follows_from_the_rest():
    norm, other = RunningNorm((1,)), RunningNorm((1,))
    norm.update(torch.tensor([[2.0], [4.0]]))
    assert set(norm.state_dict()) == {"count", "mean", "square"}
    other.load_state_dict(norm.state_dict())
    # Mean 3, std 1: 5 -> 2
    assert torch.allclose(other(torch.tensor([[5.0]])), torch.tensor([[2.0]]), atol=EXACT)
