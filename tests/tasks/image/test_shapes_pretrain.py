"""The base is a function of the seed, learns, and is written with its recipe; Muon orthogonalises."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tasks.image import pretrain
from tasks.image.muon import Muon, orthogonalise
from tasks.image.networks import ShapesNet, ShapesNetConfig
from tasks.image.pretrain import PretrainConfig, euler, pretrain_shapes
from tasks.image.prompts import evaluation_prompts

EXACT = {"rtol": 0.0, "atol": 1e-6}
LOOSE = {"rtol": 0.0, "atol": 0.35}
TINY = PretrainConfig(steps=2, batch=2, log_every=0)


@pytest.fixture(autouse=True)
def _small_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "EVAL_STEPS", 1)
    monkeypatch.setattr(pretrain, "evaluation_prompts", lambda: evaluation_prompts()[:16])


def test_same_seed_same_base(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        pretrain_shapes(tmp_path / folder, seed, TINY)
    first, again, other = (load_file(tmp_path / folder / "model.safetensors") for folder in "abc")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


def test_recipe_and_scores_are_written(tmp_path: Path) -> None:
    scores = pretrain_shapes(tmp_path, 5, TINY)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["recipe"]["seed"] == 5
    assert content["recipe"]["steps"] == 2
    assert content["scores"] == scores
    assert set(scores) == {
        "strict",
        "soft",
        *(f"strict/{k}" for k in ("single", "count", "two", "binding", "position")),
    }


def test_loss_falls() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    config = PretrainConfig(steps=20, batch=16, warmup_steps=5)
    network = ShapesNet(ShapesNetConfig(channels=(8, 16, 16), token_dim=8, condition_dim=16))
    optimizers = pretrain._optimizers(network, config)
    losses = []
    for _ in range(20):
        loss = pretrain._loss(network, pretrain._shapes(), config, generator)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


def test_learning_rate_schedule_by_hand() -> None:
    config = PretrainConfig(steps=100, warmup_steps=10, decay_fraction=0.5)
    # Warm-up: 5/10. Plateau: 1. Decay over the last 50 steps: (100 - 75)/50 = .5; the last step is 0.
    assert [pretrain._rate(step, config) for step in (5, 50, 75, 100)] == [0.5, 1.0, 0.5, 0.0]


def test_learning_rate_rises_again_for_wrong_captions_by_hand() -> None:
    config = PretrainConfig(
        steps=60, wrong_caption_steps=20, wrong_caption_rate=0.3, warmup_steps=10, decay_fraction=0.5
    )
    # 40 right steps: warm-up 5/10, plateau, (40 - 30)/20, 0. Then 20 at .3 of that: 5/10, 10 of 20, (20 - 15)/10, 0.
    found = [pretrain._rate(step, config) for step in (5, 20, 30, 40, 45, 50, 55, 60)]
    assert found == pytest.approx([0.5, 1.0, 0.5, 0.0, 0.15, 0.3, 0.15, 0.0])


def test_wrong_captions_leave_the_drawing_layers_alone(tmp_path: Path) -> None:
    # The average is the network itself; at the end of the right captions both runs are the same.
    settings = {"batch": 2, "log_every": 0, "ema_decay": 0.0, "wrong_caption_rate": 0.5, "warmup_steps": 1}
    right = PretrainConfig(steps=2, wrong_caption_steps=0, **settings)
    wrong = {"steps": 4, "wrong_caption_steps": 2, "wrong_caption_fraction": 1.0, "decay_fraction": 0.5}
    both = {layers: PretrainConfig(wrong_caption_layers=layers, **wrong, **settings) for layers in ("caption", "all")}
    runs = {"right": replace(right, decay_fraction=0.5), **both}
    for name, config in runs.items():
        pretrain_shapes(tmp_path / name, 0, config)
    weights = {name: load_file(tmp_path / name / "model.safetensors") for name in runs}
    drawing = [name for name, value in weights["right"].items() if value.ndim == 4]
    assert len(drawing) > 15

    def moved(run: str, names: list[str]) -> list[bool]:
        return [not torch.equal(weights[run][name], weights["right"][name]) for name in names]

    assert not any(moved("caption", drawing))
    # Some kernels stand behind weights that are still zero.
    assert sum(moved("all", drawing)) > 10
    assert any(moved("caption", [name for name in weights["right"] if name.startswith("attend")]))


def test_euler_follows_a_constant_velocity() -> None:
    class Constant(torch.nn.Module):
        def forward(self, x: torch.Tensor, s: torch.Tensor, context: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.full_like(x, 2.0)

    noise = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    # dx = v ds from s = 1 to 0: x - 2, whatever the number of steps and the batch.
    images = euler(Constant(), noise, torch.zeros(5, 7, dtype=torch.int64), steps=4, batch=2)
    assert torch.allclose(images, noise - 2, **EXACT)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (4, 3, 3, 3)])
def test_orthogonalised_singular_values_are_near_one(shape: tuple[int, ...]) -> None:
    update = orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(update.flatten(1))
    # Five quintic rounds land in [.7, 1.2], not on 1.
    assert torch.allclose(values, torch.ones_like(values), **LOOSE)


def test_muon_step_has_the_length_of_the_rate() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 4))
    weight.grad = 7.0 * torch.eye(4)
    Muon([weight], lr=0.1).step()
    # A multiple of the identity is orthogonal up to scale: the step is -.1 * I, whatever the 7.
    assert torch.allclose(weight.detach().diag(), torch.full((4,), -0.1), rtol=0.0, atol=0.035)
    assert torch.allclose(weight.detach() - weight.detach().diag().diag(), torch.zeros(4, 4), **EXACT)


def test_muon_refuses_vectors() -> None:
    with pytest.raises(ValueError, match="give those to AdamW"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
