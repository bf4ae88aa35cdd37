"""Diversity against numbers by hand."""

import pytest
import torch

from tasks.image.diversity import cosine_diversity, pixel_diversity, thumbnails

EXACT = {"rtol": 0.0, "atol": 1e-6}


def test_pixel_diversity_by_hand() -> None:
    small = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [0.5, 0.5]])
    # Root-mean-square difference of black and white is 1; equal pictures have none.
    assert torch.allclose(pixel_diversity(small, 2), torch.tensor([1.0, 0.0]), **EXACT)
    # Of the six pairs of all four: 1, .5, .5, .5, .5, 0.
    assert torch.allclose(pixel_diversity(small, 4), torch.tensor([0.5]), **EXACT)


def test_nearly_equal_pictures_keep_their_small_distance() -> None:
    first = torch.full((1, 3072), 0.5)
    assert pixel_diversity(torch.cat([first, first + 1e-4]), 2).item() == pytest.approx(1e-4, rel=0.01)


def test_cosine_diversity_by_hand() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.6, 0.8]])
    # Orthogonal: 1. Equal: 0.
    assert torch.allclose(cosine_diversity(features, 2), torch.tensor([1.0, 0.0]), **EXACT)
    # Cosines of the six pairs: 0, .6, .6, .8, .8, 1, so 1 - 3.8 / 6.
    assert torch.allclose(cosine_diversity(features, 4), torch.tensor([1 - 3.8 / 6]), **EXACT)


def test_thumbnails_are_means_of_blocks() -> None:
    image = torch.zeros(1, 3, 64, 64)
    image[0, 0, :2, 0] = 1.0
    small = thumbnails(image).view(3, 32, 32)
    # Two of the four pixels of the first block.
    assert small[0, 0, 0] == 0.5
    assert small.sum() == 0.5
    assert thumbnails(torch.zeros(2, 3, 16, 64)).shape == (2, 3 * 16 * 32)


@pytest.mark.parametrize("measure", [pixel_diversity, cosine_diversity])
@pytest.mark.parametrize(("rows", "size"), [(3, 2), (2, 1)])
def test_incomplete_groups_are_refused(measure, rows, size) -> None:
    with pytest.raises(ValueError, match="expected whole groups of at least 2"):
        measure(torch.zeros(rows, 4), size)
