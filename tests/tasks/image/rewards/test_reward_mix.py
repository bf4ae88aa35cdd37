"""The mix: weights, normalisation, what is held out, threads; every bad answer names the reward and the prompt."""

import threading
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from rlflow.registry import UnknownNameError
from tasks.image.rewards import Prompt, Reward, RewardError, RewardMix, open_rewards
from tasks.image.rewards.mix import Part, normalised
from tasks.image.rewards.registry import REWARDS, make_reward

EXACT = {"rtol": 0.0, "atol": 1e-6}
LOOSE = {"rtol": 0.0, "atol": 1e-4}
PROMPTS = [Prompt(text=f"prompt {i}") for i in range(4)]
IMAGES = torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 3, 8, 8).contiguous()


@dataclass(kw_only=True)
class Fixed(Reward):
    """Answers what it was built with."""

    answer: object
    opened: bool = True

    def __call__(self, images, prompts):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self):
        self.opened = False


@dataclass(kw_only=True)
class Threaded(Reward):
    """Remembers the thread that called it."""

    concurrent: ClassVar[bool] = True
    name: str = ""

    def __call__(self, images, prompts):
        self.name = threading.current_thread().name
        return torch.zeros(len(images))


def part(name, reward, weight=1.0, held_out=False):
    return Part(name=name, reward=reward, weight=weight, held_out=held_out)


def test_weighted_sum_by_hand():
    a, b = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([10.0, 0.0, 10.0, 0.0])
    mix = RewardMix([part("a", Fixed(answer=a), 2.0), part("b", Fixed(answer=b), -0.5)])
    scores = mix(IMAGES, PROMPTS)
    # 2 a - b / 2.
    assert torch.allclose(scores.reward, torch.tensor([-3.0, 4.0, 1.0, 8.0]), **EXACT)
    assert torch.equal(scores.terms["a"], a)
    assert torch.equal(scores.terms["b"], b)


def test_per_reward_normalisation_by_hand():
    a, b = torch.tensor([1.0, 3.0, 5.0, 5.0]), torch.tensor([0.0, 1000.0, 2000.0, 1000.0])
    mix = RewardMix([part("a", Fixed(answer=a)), part("b", Fixed(answer=b), 0.5)], "per_reward")
    scores = mix(IMAGES, PROMPTS, group=torch.tensor([7, 7, 2, 2]))
    # Two members lie one standard deviation from their mean. a: -1, 1 and 0, 0 (no spread); b: -1, 1 and 1, -1, halved.
    assert torch.allclose(scores.reward, torch.tensor([-1.5, 1.5, 0.5, -0.5]), **LOOSE)
    assert torch.equal(scores.terms["b"], b)


def test_per_reward_needs_groups_of_two():
    mix = RewardMix([part("a", Fixed(answer=torch.zeros(4)))], "per_reward")
    with pytest.raises(ValueError, match="expected the group of each image"):
        mix(IMAGES, PROMPTS)
    with pytest.raises(ValueError, match="at least 2 images"):
        normalised(torch.zeros(3), torch.tensor([0, 0, 1]))


def test_a_held_out_reward_is_in_the_evaluation_only():
    calls = Fixed(answer=ValueError("must not run"))
    train, held = torch.arange(4.0), part("judge", calls, 0.0, held_out=True)
    mix = RewardMix([part("a", Fixed(answer=train)), held])
    assert set(mix(IMAGES, PROMPTS).terms) == {"a"}
    calls.answer = torch.ones(4)
    terms = mix.evaluate(IMAGES, PROMPTS)
    assert torch.equal(terms["judge"], torch.ones(4))
    assert torch.equal(mix.weighted(terms), train)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.zeros(3), r"reward 'bad': expected a tensor \[4\], found \[3\] \(the first for prompt 'prompt 0'\)"),
        (torch.zeros(4, 1), r"expected a tensor \[4\], found \[4, 1\]"),
        ([0.0] * 4, "found list"),
        (
            torch.tensor([0, 1, float("nan"), 1]),
            "reward 'bad': expected finite scores, found nan for prompt 'prompt 2'",
        ),
        (torch.tensor([0, float("inf"), 0, 1]), "found inf for prompt 'prompt 1'"),
        (OSError("disk gone"), "reward 'bad' failed on 4 images, the first for prompt 'prompt 0': OSError: disk gone"),
        (RewardError("no target", 3), "reward 'bad' failed on prompt 'prompt 3': RewardError: no target"),
    ],
)
@pytest.mark.parametrize("thread", [False, True])
def test_a_bad_answer_stops_with_names(answer, message, thread, monkeypatch):
    bad, good = Fixed(answer=answer), Fixed(answer=torch.zeros(4))
    monkeypatch.setattr(Fixed, "concurrent", thread)
    mix = RewardMix([part("good", good), part("bad", bad)])
    with pytest.raises(RewardError, match=message):
        mix(IMAGES, PROMPTS)
    mix.close()


@pytest.mark.parametrize("value", [float("nan"), -0.2, 1.5])
def test_broken_images_name_their_prompt(value):
    images = IMAGES.clone()
    images[2, 1, 3, 3] = value
    with pytest.raises(RewardError, match=r"1 of 4 images are not finite .* the first is for prompt 'prompt 2'"):
        RewardMix([part("a", Fixed(answer=torch.zeros(4)))])(images, PROMPTS)


def test_shapes_are_checked():
    mix = RewardMix([part("a", Fixed(answer=torch.zeros(4)))])
    with pytest.raises(ValueError, match="one prompt per image: found 4 images and 3 prompts"):
        mix(IMAGES, PROMPTS[:3])
    with pytest.raises(ValueError, match=r"expected float32 \[n, 3, H, W\], found torch.float64"):
        mix(IMAGES.double(), PROMPTS)


def test_concurrent_rewards_run_on_threads_of_their_own():
    waiting = Threaded()
    mix = RewardMix([part("wait", waiting), part("a", Fixed(answer=torch.ones(4)))])
    assert list(mix(IMAGES, PROMPTS).terms) == ["wait", "a"]
    assert waiting.name.startswith("reward")
    mix.close()
    # A single reward has nothing to run beside.
    RewardMix([part("wait", waiting)])(IMAGES, PROMPTS)
    assert waiting.name == threading.current_thread().name


def test_close_reaches_every_reward():
    rewards = [Fixed(answer=torch.zeros(4)) for _ in range(2)]
    RewardMix([part(str(i), reward) for i, reward in enumerate(rewards)]).close()
    assert not any(reward.opened for reward in rewards)


def test_specification():
    mix = open_rewards(
        {
            "jpeg_compressibility": 0.5,
            "small": {"reward": "jpeg_compressibility", "weight": 2, "quality": 50},
            "jpeg_incompressibility": {"held_out": True},
        }
    )
    assert [(p.name, p.weight, p.held_out) for p in mix.parts] == [
        ("jpeg_compressibility", 0.5, False),
        ("small", 2.0, False),
        ("jpeg_incompressibility", 0.0, True),
    ]
    assert mix.parts[1].reward.quality == 50


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"astetic": 1.0}, UnknownNameError, "unknown reward 'astetic'; did you mean aesthetic?"),
        ({"ocr": {"ignore_cases": True}}, ValueError, "unknown setting 'ignore_cases'; did you mean ignore_case?"),
        ({"ocr": {"held_out": True}}, ValueError, "expected at least one with a weight"),
        ({"ocr": {"held_out": True, "weight": 1.0}, "remote": 1.0}, ValueError, "expected no weight where held_out"),
        ({"nowhere:Thing": 1.0}, UnknownNameError, "cannot be imported"),
        ({"dataclasses:dataclass": 1.0}, TypeError, "derives from Reward"),
    ],
)
def test_a_wrong_specification_is_refused(spec, error, message):
    with pytest.raises(error, match=message):
        open_rewards(spec)


def test_a_reward_of_another_package_is_named_by_its_module():
    reward = make_reward("tasks.image.rewards.jpeg:JpegCompressibility", {"quality": 70})
    assert reward.quality == 70


def test_no_library_of_a_model_is_loaded_before_the_first_score():
    import subprocess
    import sys

    program = (
        "import sys; from tasks.image.rewards.registry import REWARDS, make_reward\n"
        "needs = {'remote': {'url': 'http://127.0.0.1:1'}, 'aesthetic': {'head': 'x'}}\n"
        "[make_reward(name, needs.get(name, {})) for name in REWARDS]\n"
        "print([m for m in ('transformers', 'rapidocr', 'onnxruntime', 'datasets', 'torchvision') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    assert len(REWARDS) == 10
