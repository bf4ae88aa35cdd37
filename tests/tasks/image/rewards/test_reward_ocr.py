"""The real engine reads rendered words without network; distances and rules by hand."""

import socket

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from tasks.image.rewards import Prompt, RewardError
from tasks.image.rewards.ocr import Ocr, edit_distance, target

pytest.importorskip("rapidocr", reason="the extra `ocr` is not installed")

EXACT = {"rtol": 0.0, "atol": 1e-6}


def render(text, width=320, height=64, size=40):
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).text((10, 6), text, fill="black", font=ImageFont.load_default(size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def prompts(*texts):
    return [Prompt(text=f'a sign that says "{text}"') for text in texts]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refused(*args, **kwargs):
        raise OSError("a test of the engine asked for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.mark.parametrize("mode", ["line", "detect"])
def test_the_engine_reads_words(mode):
    reward = Ocr(mode=mode, detector_side=96)
    words = ["HELLO", "Rocket", "BLANK"]
    images = torch.stack([render("HELLO"), render("Rocket"), torch.ones(3, 64, 320)])
    # Two words read exactly; nothing is read on the blank sheet, five of five letters are missing.
    assert torch.allclose(reward(images, prompts(*words)), torch.tensor([1.0, 1.0, 0.0]), **EXACT)
    assert reward.read(images)[2] == ""


def test_a_score_does_not_depend_on_the_batch():
    images = torch.stack([render(word) for word in ("HELLO", "HELP", "WORLD")])
    asked = prompts("HELLO", "HELLO", "HELLO")
    together = Ocr(mode="line", batch=3)(images, asked)
    alone = [Ocr(mode="line", batch=1)(images[i : i + 1], asked[:1]) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))
    # HELP: L -> P and a missing O or the reverse, 2 of 5. WORLD against HELLO: only the fourth letter stays, 4 of 5.
    assert torch.allclose(together, torch.tensor([1.0, 0.6, 0.2]), **EXACT)


def test_small_pictures_are_enlarged():
    small = torch.nn.functional.interpolate(render("HELLO")[None], scale_factor=0.25, mode="area")
    assert Ocr(mode="line", upscale=4).read(small) == ["HELLO"]


@pytest.mark.parametrize(
    ("settings", "text", "goal", "expected"),
    [
        ({}, "Hello", "hello", 1.0),
        # In a case-sensitive comparison one of five letters differs.
        ({"ignore_case": False}, "Hello", "hello", 0.8),
        ({}, "hel lo", "hello", 1.0),
        ({"ignore_spaces": False}, "hel lo", "hello", 0.8),
        ({}, "say hello now", "hello", 1.0),
        # "sayhellonow" has six letters too many, more than the target has.
        ({"substring": False}, "say hello now", "hello", 0.0),
        ({"substring": False}, "hellos", "hello", 0.8),
        ({"strict": True}, "hallo", "hello", 0.0),
        ({"strict": True}, "hello", "hello", 1.0),
        ({}, "", "hello", 0.0),
    ],
)
def test_rules_by_hand(settings, text, goal, expected):
    reward = Ocr(**settings)
    assert reward.grade(text, reward.normal(goal)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0), ("ab", "ba", 2), ("flaw", "lawn", 2)],
)
def test_edit_distance_by_hand(first, second, distance):
    assert edit_distance(first, second) == distance


def test_targets():
    assert target(Prompt(text='the word "Sun" and "Moon"')) == "Sun"
    assert target(Prompt(text="the word “Sun”")) == "Sun"
    assert target(Prompt(text='not "this"', meta={"target": "that"})) == "that"


def test_a_prompt_without_a_target_is_refused():
    images = torch.ones(2, 3, 64, 64)
    with pytest.raises(RewardError, match="no target") as caught:
        Ocr()(images, [Prompt(text='"a"'), Prompt(text="a cat")])
    assert caught.value.row == 1
    with pytest.raises(RewardError, match="no characters"):
        Ocr()(images[:1], [Prompt(text='" "')])


@pytest.mark.parametrize("settings", [{"mode": "page"}, {"upscale": 0}, {"batch": 0}, {"threads": -1}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="expected mode detect or line"):
        Ocr(**settings)
