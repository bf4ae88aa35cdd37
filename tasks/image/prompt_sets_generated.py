"""Prompts made by rule: compositions in GenEval's format (arXiv 2310.11513) and words to be written.

Every generator enumerates or draws from a seed and keeps the prompts of one split by their digest, so that no seed and
no number of prompts ever puts one prompt into both. An unordered pair has one digest whichever comes first.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tasks.image.prompt_sets import SPLITS, split_of
from tasks.image.rewards.reward import Prompt


def _lines(name: str) -> tuple[str, ...]:
    path = Path(__file__).parent / "prompt_words" / name
    return tuple(path.read_text(encoding="utf-8").splitlines())


OBJECTS = _lines("coco_objects.txt")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
# Shares of GenEval's own 553 prompts: 80 single, 99 two, 80 counting, 94 colours, 100 position, 100 attribution.
KINDS = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
_NUMBERS = {2: "two", 3: "three", 4: "four"}
# "A green person" asks for something else than a colour.
_COLOURED = tuple(name for name in OBJECTS if name != "person")
# Draws for every prompt that is wanted, before the generator says that the kind has no more.
_PATIENCE = 200

_TEMPLATES = (
    'a sign that says "{}"',
    'a storefront with "{}" written on it',
    'a birthday cake with "{}" in icing',
    'the word "{}" painted on a brick wall',
    'a book cover with the title "{}"',
    'a t-shirt with "{}" printed on the front',
    'a chalkboard with "{}" written in chalk',
    'a neon sign that reads "{}" at night',
    'a coffee cup labelled "{}"',
    'a road sign with "{}" on it',
    'a poster that says "{}" in bold letters',
    'a wooden plank with "{}" carved into it',
)
_WORDS = _lines("short_words.txt")


def geneval_prompts(count: int, *, seed: int = 0, split: str = "train") -> list[Prompt]:
    """Compositional prompts with GenEval's metadata, each kind with its share of GenEval's own set.

    Args:
        count: How many; fewer come back where a kind has no more distinct prompts (64 single objects in `train`).
        seed: Of the draws; the split does not depend on it.
        split: `train` or `test`.

    Returns:
        Distinct prompts; `meta` has `tag`, `include` and, where counted, `exclude`.
    """
    _check(count, split)
    generator = random.Random(seed)
    prompts: dict[str, Prompt] = {}
    total = sum(KINDS.values())
    for kind, share in KINDS.items():
        wanted, found = max(1, round(count * share / total)), 0
        for _ in range(wanted * _PATIENCE):
            if found == wanted:
                break
            text, meta, content = _DRAWS[kind](generator)
            if split_of(json.dumps([kind, content])) == split and text not in prompts:
                prompts[text] = Prompt(text=text, meta={"tag": kind, **meta})
                found += 1
    chosen = list(prompts.values())
    generator.shuffle(chosen)
    return chosen[:count]


def ocr_prompts(
    count: int, *, seed: int = 0, split: str = "train", words: tuple[str, ...] = _WORDS, max_words: int = 2
) -> list[Prompt]:
    """Prompts that ask for one to `max_words` short words, in quotes and in `meta["target"]`.

    Words of `test` never occur in `train` alone or in a pair: the digest divides the words, not the prompts.
    """
    _check(count, split)
    generator = random.Random(seed)
    own = [word for word in words if split_of(word) == split]
    prompts: dict[str, Prompt] = {}
    for _ in range(count * _PATIENCE):
        if len(prompts) == count:
            break
        chosen = generator.sample(own, generator.randint(1, max_words))
        target = " ".join(chosen)
        target = generator.choice((str.upper, str.title, str.lower))(target)
        text = generator.choice(_TEMPLATES).format(target)
        tag = "1_word" if len(chosen) == 1 else f"{len(chosen)}_words"
        prompts[text] = Prompt(text=text, meta={"tag": tag, "target": target})
    return list(prompts.values())


def guard_prompts(count: int = 0, *, seed: int = 0, split: str = "test") -> list[Prompt]:
    """Own prompts on everything that pictures are of, by category in `meta["tag"]`; never drawn, so no seed matters.

    Args:
        count: The first of them, category by category; 0 gives all.
        seed: Unused.
        split: `test` alone: they are there to be held out.
    """
    from omegaconf import OmegaConf

    if count < 0 or split != "test":
        raise ValueError(
            f"guard prompts are for evaluation: expected count >= 0 and split test, found {count}, {split!r}"
        )
    path = Path(__file__).parent / "prompt_words" / "guard.yaml"
    lists: Any = OmegaConf.to_container(OmegaConf.load(path))
    prompts = [Prompt(text=text, meta={"tag": category}) for category, texts in lists.items() for text in texts]
    return prompts[: count or None]


def _check(count: int, split: str) -> None:
    if count < 1 or split not in SPLITS:
        raise ValueError(f"expected count >= 1 and split train or test, found {count} and {split!r}")


_Draw = tuple[str, Mapping[str, Any], list[Any]]


def _single(generator: random.Random) -> _Draw:
    name = generator.choice(OBJECTS)
    return f"a photo of {_a(name)}", {"include": [{"class": name, "count": 1}]}, [name]


def _two(generator: random.Random) -> _Draw:
    first, second = generator.sample(OBJECTS, 2)
    include = [{"class": first, "count": 1}, {"class": second, "count": 1}]
    return f"a photo of {_a(first)} and {_a(second)}", {"include": include}, sorted([first, second])


def _counting(generator: random.Random) -> _Draw:
    name, number = generator.choice(OBJECTS), generator.choice(tuple(_NUMBERS))
    plural = f"{name}es" if name.endswith("s") else f"{name}s"
    include, exclude = [{"class": name, "count": number}], [{"class": name, "count": number + 1}]
    return f"a photo of {_NUMBERS[number]} {plural}", {"include": include, "exclude": exclude}, [name, number]


def _coloured(generator: random.Random) -> _Draw:
    name, colour = generator.choice(_COLOURED), generator.choice(COLOURS)
    include = [{"class": name, "count": 1, "color": colour}]
    return f"a photo of {_a(colour)} {name}", {"include": include}, [name, colour]


def _positioned(generator: random.Random) -> _Draw:
    first, second = generator.sample(OBJECTS, 2)
    relation = generator.choice(RELATIONS)
    # The target of the relation comes first: `position` names it by its place in the list.
    include = [{"class": second, "count": 1}, {"class": first, "count": 1, "position": [relation, 0]}]
    return f"a photo of {_a(first)} {relation} {_a(second)}", {"include": include}, sorted([first, second])


def _attributed(generator: random.Random) -> _Draw:
    names, colours = generator.sample(_COLOURED, 2), generator.sample(COLOURS, 2)
    include = [{"class": name, "count": 1, "color": colour} for name, colour in zip(names, colours, strict=True)]
    parts = [f"{_a(colour)} {name}" for name, colour in zip(names, colours, strict=True)]
    return f"a photo of {parts[0]} and {parts[1]}", {"include": include}, sorted(names)


_DRAWS: dict[str, Callable[[random.Random], _Draw]] = {
    "single_object": _single,
    "two_object": _two,
    "counting": _counting,
    "colors": _coloured,
    "position": _positioned,
    "color_attr": _attributed,
}


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
