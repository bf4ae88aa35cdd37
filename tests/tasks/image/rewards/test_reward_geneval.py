"""GenEval's rules by hand, boxes by hand, and the open detectors as random models of the real classes."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.image.prompt_sets_generated import geneval_prompts
from tasks.image.rewards import Prompt, RewardError
from tasks.image.rewards.clip_score import ClipScore
from tasks.image.rewards.colours import COLOURS, Colours, crop
from tasks.image.rewards.detection import Detection, Detector, detections, distinct, from_centre, overlap, same_queries
from tasks.image.rewards.geneval import GenEval
from tasks.image.rewards.geneval_rules import relations, verdict
from tasks.image.rewards.grounding_dino import GroundingDino
from tasks.image.rewards.owlv2 import Owlv2, prepare
from tasks.image.rewards.pixels import to_uint8
from tests.tasks.image.rewards.tiny_models import save_clip, save_grounding_dino, save_owlv2

EXACT = {"rtol": 0.0, "atol": 1e-6}
LOOSE = {"rtol": 0.0, "atol": 1e-4}


def item(label, *box, score=0.9):
    return Detection(label=label, score=score, box=box)


CAT, CAT_RIGHT, DOG = item("cat", 0, 0, 10, 10), item("cat", 40, 0, 50, 10), item("dog", 40, 0, 50, 10)


def red_and_blue(found, name):
    """Left of 20 is red, the rest blue."""
    return ["red" if d.box[0] < 20 else "blue" for d in found]


def judged(objects, **meta):
    by_name = {}
    for found in objects:
        by_name.setdefault(found.label, []).append(found)
    return verdict(by_name, meta, red_and_blue)


CASES = {
    "there": ([CAT], {"include": [{"class": "cat", "count": 1}]}, True, 1.0),
    "absent": ([DOG], {"include": [{"class": "cat", "count": 1}]}, False, 0.0),
    "one of two kinds": ([CAT], {"include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1}]}, False, 0.5),
    "two of three": ([CAT, CAT_RIGHT], {"include": [{"class": "cat", "count": 3}]}, False, 2 / 3),
    # Include holds (1); three are forbidden and there are three: 1 - 1/3. Mean 5/6.
    "one too many": (
        [CAT, CAT_RIGHT, item("cat", 80, 0, 90, 10)],
        {"include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}]}, False, 5 / 6,
    ),
    "right number": (
        [CAT, CAT_RIGHT],
        {"include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}]}, True, 1.0,
    ),
    "colour": ([CAT], {"include": [{"class": "cat", "count": 1, "color": "red"}]}, True, 1.0),
    # There (1) but blue (0): .5.
    "wrong colour": ([CAT_RIGHT], {"include": [{"class": "cat", "count": 1, "color": "red"}]}, False, 0.5),
    # Only the most confident counts: the red one comes first.
    "first is red": ([CAT, CAT_RIGHT], {"include": [{"class": "cat", "count": 1, "color": "red"}]}, True, 1.0),
    "binding": (
        [CAT, DOG],
        {"include": [{"class": "cat", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "blue"}]},
        True, 1.0,
    ),
    "swapped binding": (
        [CAT, DOG],
        {"include": [{"class": "cat", "count": 1, "color": "blue"}, {"class": "dog", "count": 1, "color": "red"}]},
        False, 0.5,
    ),
    "position": (
        [CAT, DOG],
        {"include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}]},
        True, 1.0,
    ),
    # The cat holds (1); the dog is there (1) but not above (0): mean of 1 and .5.
    "wrong position": (
        [CAT, DOG], {"include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["above", 0]}]},
        False, 0.75,
    ),
    # No cat (0), and a dog without anything to stand by: (1 + 0) / 2. Mean .25.
    "no target": (
        [DOG], {"include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["above", 0]}]},
        False, 0.25,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_verdicts_by_hand(case):
    objects, meta, strict, soft = CASES[case]
    found = judged(objects, **meta)
    assert found.strict is strict
    assert found.soft == pytest.approx(soft)
    assert bool(found.reasons) is not strict


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((-30, 0, -20, 10), {"left of"}),
        ((30, 0, 40, 10), {"right of"}),
        ((0, -30, 10, -20), {"above"}),
        ((0, 30, 10, 40), {"below"}),
        # Both offsets are 30, less 2 for the sizes, over 42.4: .66 each.
        ((30, 30, 40, 40), {"right of", "below"}),
        # 20 degrees off the axis: 12 - 2 = 10 over 34.2 is .29, not more than .5.
        ((32, 12, 42, 22), {"right of"}),
        ((1, 1, 11, 11), set()),
    ],
)
def test_relations_by_hand(box, expected):
    assert relations(item("b", *box), item("a", 0, 0, 10, 10)) == expected


def test_boxes_by_hand():
    # 5 x 10 shared of 100 + 100 - 50.
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert overlap((0, 0, 10, 10), (20, 0, 30, 10)) == 0
    found = [
        item("a", 0, 0, 10, 10, score=0.5),
        item("a", 1, 0, 11, 10, score=0.8),
        item("a", 50, 0, 60, 10, score=0.6),
        item("a", 80, 0, 90, 10, score=0.2),
    ]
    # The first overlaps the better second by 90/110; the last is below the threshold.
    kept = distinct(found, threshold=0.3, max_overlap=0.5, limit=16)
    assert [d.score for d in kept] == [0.8, 0.6]
    assert len(distinct(found, threshold=0.3, max_overlap=1.0, limit=16)) == 3
    assert [d.score for d in distinct(found, threshold=0.3, max_overlap=1.0, limit=1)] == [0.8]
    assert from_centre(torch.tensor([0.5, 0.4, 0.2, 0.6])).tolist() == pytest.approx([0.4, 0.1, 0.6, 0.7])


def test_a_box_takes_its_most_likely_name():
    scores = torch.tensor([[0.2, 0.7], [0.4, 0.1], [0.05, 0.02]])
    found = detections(scores, torch.arange(12.0).view(3, 4), ("cat", "dog"), floor=0.1)
    assert [(d.label, round(d.score, 4), d.box) for d in found] == [
        ("dog", 0.7, (0.0, 1.0, 2.0, 3.0)),
        ("cat", 0.4, (4.0, 5.0, 6.0, 7.0)),
    ]


def test_pictures_that_ask_the_same_are_asked_together():
    asked = list(same_queries([["a"], ["b"], ["a"], ["a"]], batch=2))
    assert asked == [([0, 2], ("a",)), ([3], ("a",)), ([1], ("b",))]


@dataclass
class Painted(Detector):
    """Finds saturated red as cat and blue as dog, so that the reward is tested from pixels to scores."""

    device: str = ""
    dtype: str = "float32"
    asked: object = None

    def __call__(self, images, queries):
        self.asked = queries
        found = []
        for image in images:
            here = []
            for label, channel in (("cat", 0), ("dog", 2)):
                rows, columns = (image[channel] - image.mean(0) > 0.4).nonzero(as_tuple=True)
                if len(rows):
                    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                    here.append(Detection(label=label, score=0.35, box=tuple(float(v) for v in box)))
            found.append(here)
        return found

    def close(self):
        self.asked = None


def picture(*squares):
    image = torch.zeros(3, 64, 64)
    for channel, x, y in squares:
        image[channel, y : y + 12, x : x + 12] = 1.0
    return image


def test_from_pixels_to_scores():
    images = torch.stack([picture((0, 4, 20), (2, 44, 20)), picture((0, 44, 20), (2, 4, 20)), picture((0, 4, 20))])
    meta = {"tag": "position", "include": [{"class": "dog", "count": 1},
            {"class": "cat", "count": 1, "position": ["left of", 0]}]}  # fmt: skip
    prompts = [Prompt(text="a cat left of a dog", meta=meta)] * 3
    reward = GenEval(detector=f"{__name__}:Painted", strict=True)
    reward._detector = Painted()
    assert reward(images, prompts).tolist() == [1.0, 0.0, 0.0]
    assert reward._detector.asked == [["dog", "cat"]] * 3
    reward.strict = False
    # Right: 1. Swapped: dog 1, cat (1 + 0) / 2. Without dog: 0 and (1 + 0) / 2.
    assert torch.allclose(reward(images, prompts), torch.tensor([1.0, 0.75, 0.25]), **EXACT)
    # Counting asks for more confidence than these detections of .35 have.
    counted = [Prompt(text="one cat", meta={"tag": "counting", "include": [{"class": "cat", "count": 1}]})] * 3
    assert reward(images, counted).tolist() == [0.0, 0.0, 0.0]


def test_a_prompt_without_clauses_is_refused():
    with pytest.raises(RewardError, match="expected GenEval's include or exclude") as caught:
        GenEval()(torch.zeros(1, 3, 8, 8), [Prompt(text="a cat")])
    assert caught.value.row == 0


def test_an_unknown_detector_is_refused():
    prompt = Prompt(text="a cat", meta={"include": [{"class": "cat", "count": 1}]})
    with pytest.raises(ValueError, match=r"unknown detector 'owl'; did you mean owlv2?"):
        GenEval(detector="owl")(torch.zeros(1, 3, 8, 8), [prompt])


def test_colours_are_the_nearest_of_ten_texts(tmp_path):
    clip = ClipScore(model=str(save_clip(tmp_path)))
    image = picture((0, 4, 20), (2, 44, 20))
    objects = [item("cat", 4, 20, 16, 32), item("cat", 44, 20, 56, 32)]
    found = Colours(clip=clip)(image, objects, "cat")
    texts = [f"a photo of a {c} cat" for c in COLOURS], [f"a photo of a {c}-colored cat" for c in COLOURS], [
        f"a photo of a {c} object" for c in COLOURS
    ]  # fmt: skip
    table = sum(clip.text_features(t, image.device) for t in texts) / 3
    table = table / table.norm(dim=1, keepdim=True)
    for seen, name in zip(objects, found, strict=True):
        left, top, right, bottom = (int(v) for v in seen.box)
        feature = clip.image_features(image[None, :, top:bottom, left:right])[0]
        assert name == COLOURS[int((table @ feature).argmax())]


def test_crops_stay_inside():
    image = torch.arange(3 * 4 * 5).view(3, 4, 5).float()
    assert crop(image, item("a", -3, -2, 2.2, 1.9)).shape == (3, 2, 2)
    assert crop(image, item("a", 9, 9, 12, 12)).shape == (3, 1, 1)


IMAGES = torch.rand(3, 3, 40, 60, generator=torch.Generator().manual_seed(0))
ASKED = [["cat", "dog"], ["cat"], ["cat", "dog"]]


@pytest.mark.parametrize("kind", ["owlv2", "grounding_dino"])
def test_open_detectors(kind, tmp_path):
    save, make = {"owlv2": (save_owlv2, Owlv2), "grounding_dino": (save_grounding_dino, GroundingDino)}[kind]
    settings = {"short_side": 96, "long_side": 192} if kind == "grounding_dino" else {}
    folder = str(save(tmp_path))
    together = make(model=folder, batch=4, **settings)(IMAGES, ASKED)
    alone = make(model=folder, batch=1, **settings)
    assert [len(found) > 0 for found in together] == [True] * 3
    for row, found in enumerate(together):
        assert {d.label for d in found} <= set(ASKED[row])
        single = alone(IMAGES[row : row + 1], [ASKED[row]])[0]
        assert [d.label for d in found] == [d.label for d in single]
        assert np.allclose([d.score for d in found], [d.score for d in single], **LOOSE)
        assert np.allclose([d.box for d in found], [d.box for d in single], rtol=0, atol=1e-2)
    alone.close()
    assert alone._model is None


def test_owlv2_boxes_as_its_own_processing_gives_them(tmp_path):
    from transformers import AutoTokenizer, Owlv2ForObjectDetection
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    folder = str(save_owlv2(tmp_path))
    model, words = Owlv2ForObjectDetection.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = words(["a photo of a cat", "a photo of a dog"], padding="max_length", max_length=24, return_tensors="pt")
    pixels = prepare(IMAGES[:1], 32)
    with torch.no_grad():
        out = model(input_ids=texts["input_ids"], attention_mask=texts["attention_mask"], pixel_values=pixels)
    processor = Owlv2ImageProcessorPil()
    expected = processor.post_process_object_detection(out, threshold=0.01, target_sizes=[(40, 60)])[0]
    found = Owlv2(model=folder)(IMAGES[:1], [["cat", "dog"]])[0]
    assert np.allclose([d.score for d in found], expected["scores"].numpy(), **LOOSE)
    assert np.allclose([d.box for d in found], expected["boxes"].numpy(), rtol=0, atol=1e-3)
    assert [d.label for d in found] == [["cat", "dog"][i] for i in expected["labels"].tolist()]


def test_owlv2_preprocessing_enlarges_as_its_processor():
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    small = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    images = torch.nn.functional.interpolate(small, (40, 40), mode="bilinear")
    processor = Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    pictures = [Image.fromarray(p) for p in to_uint8(images)]
    expected = torch.from_numpy(np.stack(processor(pictures, return_tensors="np")["pixel_values"])).float()
    # Both interpolate linearly; the bytes that the processor reads are rounded by at most half of 255th.
    assert torch.allclose(prepare(images, 64), expected, rtol=0.0, atol=0.02)


def test_generated_prompts_can_be_judged():
    reward = GenEval()
    reward._detector = Painted()
    images = torch.zeros(60, 3, 16, 16)
    scores = reward(images, geneval_prompts(60)[:60])
    # Nothing is there; only what is forbidden holds, half of the clauses of counting prompts.
    counting = torch.tensor([p.meta["tag"] == "counting" for p in geneval_prompts(60)])
    assert torch.allclose(scores, 0.5 * counting.float(), **EXACT)
