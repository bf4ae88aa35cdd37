"""JPEG sizes against the encoder called by hand."""

import io

import pytest
import torch
from PIL import Image

from tasks.image.rewards import Prompt
from tasks.image.rewards.jpeg import JpegCompressibility, JpegIncompressibility

EXACT = {"rtol": 0.0, "atol": 1e-6}
FLAT = torch.full((3, 32, 32), 0.5)
NOISE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
IMAGES, PROMPTS = torch.stack([FLAT, NOISE]), [Prompt(text="")] * 2


def size(image, quality):
    file = io.BytesIO()
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return len(file.getvalue())


def test_scores_are_the_size_of_the_file():
    sizes = torch.tensor([size(FLAT, 80), size(NOISE, 80)]) / 1000
    assert torch.allclose(JpegIncompressibility(quality=80)(IMAGES, PROMPTS), sizes, **EXACT)
    assert torch.allclose(JpegCompressibility(quality=80, scale_kb=2)(IMAGES, PROMPTS), -sizes / 2, **EXACT)
    assert sizes[1] > 2 * sizes[0]


@pytest.mark.parametrize("settings", [{"quality": 0}, {"quality": 96}, {"scale_kb": 0.0}])
@pytest.mark.parametrize("kind", [JpegCompressibility, JpegIncompressibility])
def test_bad_settings_are_refused(kind, settings):
    with pytest.raises(ValueError, match="quality 1-95"):
        kind(**settings)
