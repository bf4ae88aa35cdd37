"""The guards fall on pictures that the strict checker still passes."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.image.checker import judge
from tasks.image.detector import find
from tasks.image.guard import layout_diversity, quality, redraw
from tasks.image.prompts import sample_prompts
from tasks.image.renderer import PALETTE, paint, render

EXACT = {"rtol": 0.0, "atol": 1e-6}


@pytest.fixture(scope="module")
def clean() -> tuple[Tensor, Tensor]:
    prompts = sample_prompts(512, torch.Generator().manual_seed(0), split="all")
    return render(prompts, torch.Generator().manual_seed(1)), prompts


def test_clean_renders_have_full_quality(clean: tuple[Tensor, Tensor]) -> None:
    assert torch.allclose(quality(clean[0], find(clean[0])), torch.ones(512), **EXACT)


def test_redraw_repeats_a_clean_render(clean: tuple[Tensor, Tensor]) -> None:
    again = PALETTE[torch.from_numpy(redraw(find(clean[0])))].permute(0, 3, 1, 2) * 2 - 1
    assert torch.allclose(again, clean[0], **EXACT)


def _saturated(images: Tensor) -> Tensor:
    return images * 1.4


def _tinted(images: Tensor) -> Tensor:
    return images + 0.1


def _noisy(images: Tensor) -> Tensor:
    return images + 0.08 * torch.randn(images.shape, generator=torch.Generator().manual_seed(2))


def _specked(images: Tensor) -> Tensor:
    hacked = images.clone()
    hacked[:, :, [0, 0, 15, 15], [0, 15, 0, 15]] = 1.0
    return hacked


@pytest.mark.parametrize("hack", [_saturated, _tinted, _noisy, _specked])
def test_quality_falls_where_the_checker_still_passes(hack: object, clean: tuple[Tensor, Tensor]) -> None:
    assert callable(hack)
    images, prompts = hack(clean[0]), clean[1]
    verdict = judge(images, prompts)
    assert verdict.strict.float().mean() > 0.9
    assert quality(images, verdict.findings).mean() < 0.7


def test_quality_falls_on_blur(clean: tuple[Tensor, Tensor]) -> None:
    blurred = F.avg_pool2d(F.pad(clean[0], (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    assert quality(blurred, find(blurred)).mean() < 0.2


def test_quality_by_hand() -> None:
    image = paint(torch.tensor([[[2, 2]]]), torch.tensor([[0]]))
    # +.04 on each channel in [-1, 1] is .02 in [0, 1]: rms = sqrt(3) * .02, quality exp(-.34641) = .70723.
    assert torch.isclose(quality(image + 0.04, find(image + 0.04))[0], torch.tensor(0.70723), rtol=0.0, atol=1e-4)


def test_quality_of_a_broken_image_is_zero() -> None:
    images = torch.full((1, 3, 16, 16), torch.nan)
    assert quality(images, find(images)).tolist() == [0.0]


def test_layout_diversity_by_hand() -> None:
    corners = torch.tensor([[[0, 0]], [[0, 0]], [[0, 0]], [[0, 2]]])
    images = paint(corners, torch.zeros(4, 1, dtype=torch.int64))
    # Equal layouts: 0. Squares shifted by 2 columns: 15 pixels in common, 35 covered, 1 - 15/35 = .571429.
    assert torch.allclose(layout_diversity(find(images), 2), torch.tensor([0.0, 0.571429]), **EXACT)


def test_collapse_to_blank_has_no_diversity() -> None:
    blank = (PALETTE[0] * 2 - 1)[None, :, None, None].repeat(4, 1, 16, 16)
    assert layout_diversity(find(blank), 4).tolist() == [0.0]


def test_groups_must_be_whole() -> None:
    images = paint(torch.zeros(3, 1, 2, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="whole groups"):
        layout_diversity(find(images), 2)
