"""The checker accepts every clean render, and a list of attacks that must not pass."""

import time

import pytest
import torch
from torch import Tensor

from tasks.image.checker import FAILURES, judge
from tasks.image.detector import COLOUR_DISTANCE, find
from tasks.image.prompts import catalogue, sample_prompts
from tasks.image.renderer import PALETTE, TEMPLATES, paint, render

EXACT = {"rtol": 0.0, "atol": 1e-6}
RED, GREEN, BLUE, YELLOW = (PALETTE[1 + i] * 2 - 1 for i in range(4))
BACKGROUND = PALETTE[0] * 2 - 1
SQUARE, DIAMOND, TRIANGLE = TEMPLATES


def _row(caption: str) -> int:
    return next(i for i, p in enumerate(catalogue()) if p.caption == caption)


def _blank() -> Tensor:
    return BACKGROUND[:, None, None].repeat(1, 16, 16)


def _draw(image: Tensor, y: int, x: int, shape: Tensor, colour: Tensor) -> Tensor:
    box = image[:, y : y + 5, x : x + 5]
    box[:] = torch.where(shape, colour[:, None, None], box)
    return image


def _fill(image: Tensor, rows: slice, columns: slice, colour: Tensor) -> Tensor:
    image[:, rows, columns] = colour[:, None, None]
    return image


def _failure(image: Tensor, caption: str) -> str:
    verdict = judge(image[None], torch.tensor([_row(caption)]))
    assert bool(verdict.strict) == (float(verdict.soft) == 1.0), "soft is 1 exactly where strict holds"
    return FAILURES[int(verdict.failure)]


def _red_square() -> Tensor:
    return _draw(_blank(), 2, 2, SQUARE, RED)


def test_every_clean_render_passes() -> None:
    prompts = sample_prompts(3000, torch.Generator().manual_seed(0), split="all")
    prompts = torch.cat([prompts, torch.arange(len(catalogue()))])
    verdict = judge(render(prompts, torch.Generator().manual_seed(1)), prompts)
    assert bool(verdict.strict.all())
    assert bool((verdict.soft == 1).all())


def test_captions_of_other_images_fail() -> None:
    prompts = sample_prompts(3000, torch.Generator().manual_seed(0), split="all")
    other = prompts[torch.randperm(3000, generator=torch.Generator().manual_seed(2))]
    verdict = judge(render(prompts, torch.Generator().manual_seed(1)), other)
    # Two draws agree in caption 1 % of the time: sum over kinds of weight^2 / members is .0039, and swapped orders
    # and true but unasked relations add as much again.
    assert 0.002 < verdict.strict.float().mean() < 0.02
    assert verdict.soft.mean() < 0.25


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_noise_fails(scale: float) -> None:
    noise = (scale * torch.randn(2000, 3, 16, 16, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    prompts = sample_prompts(2000, torch.Generator().manual_seed(1), split="all")
    verdict = judge(noise, prompts)
    assert not verdict.strict.any()
    assert verdict.soft.max() < 0.05


def test_no_constant_answer_earns_much() -> None:
    prompts = sample_prompts(200, torch.Generator().manual_seed(0), split="all")
    answers = render(
        sample_prompts(24, torch.Generator().manual_seed(1), split="all"), torch.Generator().manual_seed(2)
    )
    verdict = judge(answers.repeat_interleave(200, dim=0), prompts.repeat(24))
    assert verdict.soft.view(24, 200).mean(1).max() < 0.35


@pytest.mark.parametrize(
    ("caption", "shown", "failure"),
    [
        ("a red diamond and a blue square", "a red square and a blue diamond", "binding"),
        ("a red square", "a green square", "colour"),
        ("a red square", "a red triangle", "shape"),
        ("a red square", "a green triangle", "objects"),
        ("three red squares", "two red squares", "missing"),
        ("two red squares", "three red squares", "extra"),
        ("a red square", "a red square and a blue diamond", "extra"),
        ("a red square left of a blue square", "a blue square left of a red square", "position"),
        ("a red square above a blue square", "a blue square above a red square", "position"),
        ("a red square and a blue square", "a blue square left of a red square", "none"),
    ],
)
def test_failure_kinds(caption: str, shown: str, failure: str) -> None:
    image = render(torch.tensor([_row(shown)]), torch.Generator().manual_seed(0))[0]
    assert _failure(image, caption) == failure


def _checkerboard() -> Tensor:
    parity = (torch.arange(16)[:, None] + torch.arange(16)) % 2 == 0
    return torch.where(parity, RED[:, None, None], BACKGROUND[:, None, None])


def _mix(share: float, colour: Tensor, towards: Tensor = BACKGROUND) -> Tensor:
    return towards + share * (colour - towards)


ATTACKS: dict[str, tuple[Tensor, str, str]] = {
    "blank": (_blank(), "a red square", "missing"),
    "one colour everywhere": (RED[:, None, None].repeat(1, 16, 16), "a red square", "malformed"),
    "checkerboard": (_checkerboard(), "a red square", "malformed"),
    "stripes": (_fill(_blank(), slice(0, 16, 2), slice(0, 16), RED), "a red square", "malformed"),
    "3 x 3 object": (_fill(_blank(), slice(2, 5), slice(2, 5), RED), "a red square", "malformed"),
    "4 x 4 object": (_fill(_blank(), slice(2, 6), slice(2, 6), RED), "a red square", "malformed"),
    "6 x 6 object": (_fill(_blank(), slice(2, 8), slice(2, 8), RED), "a red square", "malformed"),
    "ring": (_fill(_red_square(), slice(3, 6), slice(3, 6), BACKGROUND), "a red square", "malformed"),
    "two touching at a corner": (_draw(_red_square(), 7, 7, SQUARE, RED), "two red squares", "malformed"),
    "one bar for two squares": (_fill(_blank(), slice(2, 7), slice(2, 13), RED), "two red squares", "malformed"),
    "two-tone object for two": (
        _fill(_red_square(), slice(2, 7), slice(5, 7), BLUE), "a red square and a blue square", "malformed",
    ),
    "one object for both ends": (_red_square(), "a red square left of a red diamond", "missing"),
    "specks": (_fill(_fill(_red_square(), slice(9, 10), slice(9, 13), BLUE), slice(12, 13), slice(9, 12), BLUE),
               "a red square", "dirt"),
    "small extra object": (_fill(_red_square(), slice(9, 11), slice(9, 12), BLUE), "a red square", "malformed"),
    "faint extra object, 25 %": (_draw(_red_square(), 9, 9, SQUARE, _mix(0.25, BLUE)), "a red square", "dirt"),
    "faint extra object, 40 %": (_draw(_red_square(), 9, 9, TRIANGLE, _mix(0.4, GREEN)), "a red square", "dirt"),
    "faint object": (_draw(_blank(), 2, 2, SQUARE, _mix(0.5, RED)), "a red square", "dirt"),
    "orange for red": (_draw(_blank(), 2, 2, SQUARE, _mix(0.52, YELLOW, RED)), "a yellow square", "dirt"),
    "white object": (_draw(_blank(), 2, 2, SQUARE, torch.ones(3)), "a yellow square", "dirt"),
    "grey background": (_draw(_blank() + 0.4, 2, 2, SQUARE, RED), "a red square", "dirt"),
    "saturated": (_red_square() * 3, "a red square", "invalid"),
    "not a number": (_draw(_red_square(), 9, 9, DIAMOND, torch.full((3,), torch.nan)), "a red square", "invalid"),
    "infinite": (_draw(_red_square(), 9, 9, DIAMOND, torch.full((3,), torch.inf)), "a red square", "invalid"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ATTACKS))
def test_attacks_fail(name: str) -> None:
    image, caption, failure = ATTACKS[name]
    assert _failure(image, caption) == failure


def test_tolerances_admit_small_flaws() -> None:
    # One missing corner (24/25 = .96), one speck of 4 px and a mild tint stay within every tolerance.
    image = _fill(_red_square(), slice(2, 3), slice(2, 3), BACKGROUND)
    image = _fill(image, slice(10, 11), slice(8, 12), BLUE)
    assert _failure(image + 0.05, "a red square") == "none"


def test_swapped_binding_earns_two_fifths() -> None:
    image = render(torch.tensor([_row("a red square and a blue diamond")]), torch.Generator().manual_seed(0))
    verdict = judge(image, torch.tensor([_row("a red diamond and a blue square")]))
    # No exact object; two colours and two shapes right at .2 each: .8 / 2 objects = .4.
    assert torch.isclose(verdict.soft[0], torch.tensor(0.4), **EXACT)


def test_soft_grades_the_relation() -> None:
    corners = torch.tensor([[[5, 5], [11, 5]], [[5, 11], [5, 5]]])
    image = paint(corners, torch.tensor([[0, 6], [0, 6]]))
    verdict = judge(image, torch.full((2,), _row("a red square left of a blue square")))
    # Offset 0: half of the .3 for the relation, .7 + .15 = .85. Offset -6, beyond -4: nothing, .7.
    assert torch.allclose(verdict.soft, torch.tensor([0.85, 0.7]), **EXACT)


def test_soft_falls_with_dirt() -> None:
    image = _red_square()
    for row in (9, 11, 13):
        _fill(image, slice(row, row + 1), slice(9, 13), BLUE)
    verdict = judge(image[None], torch.tensor([_row("a red square")]))
    # 12 px of dirt, 6 over the limit of 6, on a range of 30: 1 - 6/30 = .8.
    assert torch.isclose(verdict.soft[0], torch.tensor(0.8), **EXACT)


def test_colour_ball_is_closed_at_its_radius() -> None:
    inside, outside = (RED + 2 * torch.tensor([0.0, 0.0, r]) for r in (COLOUR_DISTANCE - 0.01, COLOUR_DISTANCE + 0.01))
    assert _failure(_draw(_blank(), 2, 2, SQUARE, inside), "a red square") == "none"
    assert _failure(_draw(_blank(), 2, 2, SQUARE, outside), "a red square") == "dirt"


def test_shapes_must_fit_the_network() -> None:
    with pytest.raises(ValueError, match=r"\[B, 3, 16, 16\]"):
        find(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="one prompt per image"):
        judge(torch.zeros(2, 3, 16, 16), torch.zeros(3, dtype=torch.int64))


def test_judging_is_fast_enough_for_a_rollout() -> None:
    prompts = sample_prompts(2000, torch.Generator().manual_seed(0), split="all")
    images = render(prompts, torch.Generator().manual_seed(1))
    start = time.process_time()
    judge(images, prompts)
    # About 13,000 images a CPU-second are measured; 2,000 guards against a fall back to a Python loop per image.
    assert time.process_time() - start < 1.0
