"""The velocity network: parameterisation, use of the caption, and the format of its weights."""

from pathlib import Path

import pytest
import torch

from tasks.image.networks import ShapesNet, ShapesNetConfig, load_network
from tasks.image.pretrain import save_base
from tasks.image.prompts import CAPTION_LENGTH, VOCABULARY, tables

EXACT = {"rtol": 0.0, "atol": 1e-6}


def _network() -> ShapesNet:
    torch.manual_seed(0)
    return ShapesNet(ShapesNetConfig(channels=(8, 16, 16), token_dim=8, condition_dim=16))


def _inputs(count: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, 16, 16, generator=generator)
    return x, torch.rand(count, generator=generator), {"tokens": tables().tokens[:count]}


def test_shipped_sizes() -> None:
    parameters = sum(p.numel() for p in ShapesNet(ShapesNetConfig()).parameters())
    # float32: about 3 MB of safetensors.
    assert 700_000 < parameters < 800_000
    assert ShapesNetConfig().vocabulary_size == len(VOCABULARY)
    assert ShapesNetConfig().caption_length == CAPTION_LENGTH


def test_fresh_network_predicts_an_empty_image() -> None:
    x, s, context = _inputs(4)
    s[0], s[1] = 0.5, 0.01
    velocity = _network()(x, s, context)
    # The head starts at zero, so x0_hat = 0 and v = x / max(s, .05): 2 x at .5 and 20 x below .05.
    assert torch.allclose(velocity[0], 2 * x[0], **EXACT)
    assert torch.allclose(velocity[1], 20 * x[1], rtol=1e-5, atol=0.0)


def test_caption_and_time_change_the_answer() -> None:
    network = _network()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, s, context = _inputs(2)
    x[1], s[1] = x[0], s[0]
    first, second = network(x, s, context)
    assert (first - second).abs().max() > 1e-3
    later = network(x[:1], s[:1] * 0.5, {"tokens": context["tokens"][:1]})[0]
    assert (first * s[0] - later * s[0] * 0.5).abs().max() > 1e-3


def test_every_parameter_is_used() -> None:
    network = _network()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    network(*_inputs(8)).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_weights_survive_the_disk(tmp_path: Path) -> None:
    network = _network().to(memory_format=torch.channels_last)
    save_base(tmp_path, network, {"seed": 0}, {"strict": 0.0})
    again = load_network(tmp_path)
    assert again.config == network.config
    assert torch.allclose(again(*_inputs(3)), network(*_inputs(3)), **EXACT)


def test_missing_weights_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"rlflow pretrain image/shapes"):
        load_network(tmp_path / "nowhere")
