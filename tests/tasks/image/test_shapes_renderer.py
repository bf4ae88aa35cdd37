"""Clean pictures: layout rules, palette and determinism."""

import torch

from tasks.image.prompts import catalogue, sample_prompts
from tasks.image.renderer import IMAGE_SIZE, PALETTE, SHAPE_SIZE, TEMPLATES, paint, render, sample_layouts

EXACT = {"rtol": 0.0, "atol": 1e-6}


def _row(caption: str) -> int:
    return next(i for i, p in enumerate(catalogue()) if p.caption == caption)


def test_template_areas() -> None:
    # square 5 * 5; diamond 1 + 3 + 5 + 3 + 1; triangle 1 + 1 + 3 + 3 + 5.
    assert TEMPLATES.sum((1, 2)).tolist() == [25, 13, 13]


def test_palette_colours_stay_apart() -> None:
    distance = torch.cdist(PALETTE, PALETTE) + 10 * torch.eye(len(PALETTE))
    # Background to green: (.05, .65, .10) -> sqrt(.0025 + .4225 + .01) = .6595, the closest pair.
    assert torch.isclose(distance.min(), torch.tensor(0.4350).sqrt(), **EXACT)


def test_paint_one_square() -> None:
    image = paint(torch.tensor([[[2, 3]]]), torch.tensor([[0]]))[0]
    red = torch.tensor([0.90, 0.15, 0.15]) * 2 - 1
    background = torch.tensor([0.10, 0.10, 0.10]) * 2 - 1
    assert torch.allclose(image[:, 2:7, 3:8], red[:, None, None].expand(3, 5, 5), **EXACT)
    # 16 * 16 - 25 pixels are background.
    assert torch.isclose(image, background[:, None, None], **EXACT).all(0).sum() == 231


def test_layouts_keep_a_gap_and_the_relation() -> None:
    prompts = sample_prompts(2000, torch.Generator().manual_seed(0), split="all")
    corner, types = sample_layouts(prompts, torch.Generator().manual_seed(1))
    assert corner.min() >= 0
    assert corner.max() <= IMAGE_SIZE - SHAPE_SIZE
    for first, second in ((0, 1), (0, 2), (1, 2)):
        both = (types[:, first] >= 0) & (types[:, second] >= 0)
        gap = (corner[:, first] - corner[:, second]).abs().amax(1) - SHAPE_SIZE
        assert gap[both].min() == 1
    relation = torch.tensor([catalogue()[int(p)].relation for p in prompts])
    step = corner[:, 1] - corner[:, 0]
    assert step[relation == 1, 1].min() == 6
    assert step[relation == 2, 0].min() == 6


def test_every_position_comes_up() -> None:
    prompts = torch.full((4000,), _row("a red square"))
    corner, _ = sample_layouts(prompts, torch.Generator().manual_seed(0))
    assert len({tuple(c) for c in corner[:, 0].tolist()}) == 12 * 12


def test_render_is_a_function_of_the_seed() -> None:
    prompts = sample_prompts(16, torch.Generator().manual_seed(0), split="all")
    first, again, other = (render(prompts, torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
