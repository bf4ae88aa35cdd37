"""Words of `image/text`: a finite catalogue, which of them are held out, and clean pictures of them.

A word is an index into the catalogue, as a prompt of the coloured objects is; letters are pixel templates, so that
no font file and no version of a renderer changes the data.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from functools import cache

import torch
from torch import Tensor

_GLYPHS = {
    "A": ("..#..", ".#.#.", "#...#", "#...#", "#####", "#...#", "#...#"),
    "C": (".####", "#....", "#....", "#....", "#....", "#....", ".####"),
    "E": ("#####", "#....", "#....", "####.", "#....", "#....", "#####"),
    "K": ("#...#", "#..#.", "#.#..", "##...", "#.#..", "#..#.", "#...#"),
    "L": ("#....", "#....", "#....", "#....", "#....", "#....", "#####"),
    "N": ("#...#", "##..#", "##..#", "#.#.#", "#..##", "#..##", "#...#"),
    "T": ("#####", "..#..", "..#..", "..#..", "..#..", "..#..", "..#.."),
    "X": ("#...#", "#...#", ".#.#.", "..#..", ".#.#.", "#...#", "#...#"),
}
ALPHABET = "".join(_GLYPHS)
LENGTHS = (3, 4)
CAPTION_LENGTH = max(LENGTHS)
VOCABULARY_SIZE = 1 + len(ALPHABET)  # 0 pads the end
WORDS_PER_LENGTH = 512
HEIGHT, WIDTH = 12, 28
GLYPH_HEIGHT, GLYPH_WIDTH, PITCH = 7, 5, 6
MARGIN = 1

SPLIT_SEED = 20_252
HELD_OUT_PER_LENGTH = 96
EVAL_GROUPS = 128
EVAL_GROUP_SIZE = 8
EVAL_NOISE_SEED = 7_412


@cache
def catalogue() -> tuple[str, ...]:
    """Every word: the 512 of three letters, then 512 of the 4,096 of four, in a fixed order."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    words: list[str] = []
    for length in LENGTHS:
        every = ["".join(letters) for letters in itertools.product(ALPHABET, repeat=length)]
        chosen = torch.randperm(len(every), generator=generator)[:WORDS_PER_LENGTH]
        words.extend(sorted(every[i] for i in chosen.tolist()))
    return tuple(words)


@cache
def tokens() -> Tensor:
    """[P, CAPTION_LENGTH] int64, 1 + index into `ALPHABET`; 0 pads the end. Callers must not write into it."""
    ids = [[1 + ALPHABET.index(letter) for letter in word] for word in catalogue()]
    return torch.tensor([row + [0] * (CAPTION_LENGTH - len(row)) for row in ids])


@cache
def held_out() -> Tensor:
    """[P] bool: no RL rollout starts from these words; pretraining sees every word."""
    generator = torch.Generator().manual_seed(SPLIT_SEED + 1)
    flags = torch.zeros(len(catalogue()), dtype=torch.bool)
    for part in range(len(LENGTHS)):
        order = torch.randperm(WORDS_PER_LENGTH, generator=generator)[:HELD_OUT_PER_LENGTH]
        flags[part * WORDS_PER_LENGTH + order] = True
    return flags


@cache
def evaluation_words() -> Tensor:
    """[EVAL_GROUPS] int64 held-out words, three and four letters in turn, so that a prefix has the same mix."""
    rows = held_out().nonzero()[:, 0].view(len(LENGTHS), HELD_OUT_PER_LENGTH)
    generator = torch.Generator().manual_seed(SPLIT_SEED + 2)
    mixed = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in rows], dim=1)
    return mixed.flatten()[:EVAL_GROUPS]


def evaluation_digest() -> str:
    """sha256 over the evaluation words, the glyphs, the group size and the noise seed."""
    content = {
        "words": [catalogue()[int(row)] for row in evaluation_words()],
        "glyphs": _GLYPHS,
        "group_size": EVAL_GROUP_SIZE,
        "noise_seed": EVAL_NOISE_SEED,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sample_words(count: int, generator: torch.Generator) -> Tensor:
    """[count] int64 indices, uniform over the catalogue (half of the words have three letters)."""
    return torch.randint(len(catalogue()), (count,), generator=generator)


@cache
def glyphs() -> Tensor:
    """[1 + letters, GLYPH_HEIGHT, GLYPH_WIDTH] bool, True where ink; row 0 is empty."""
    blank = [[False] * GLYPH_WIDTH] * GLYPH_HEIGHT
    return torch.tensor([blank, *([[c == "#" for c in row] for row in rows] for rows in _GLYPHS.values())])


def strips(ids: Tensor) -> Tensor:
    """Words [n, CAPTION_LENGTH] of letter ids as ink [n, GLYPH_HEIGHT, CAPTION_LENGTH * PITCH] bool, set left."""
    letters = torch.nn.functional.pad(glyphs()[ids], (0, PITCH - GLYPH_WIDTH))  # [n, L, h, PITCH]
    return letters.transpose(1, 2).flatten(2)


def paint(ids: Tensor, top_left: Tensor) -> Tensor:
    """Black letters on white paper.

    Args:
        ids: [n, CAPTION_LENGTH] int64 letter ids, 0 at the end of short words.
        top_left: [n, 2] int64 corner (y, x) of the first letter.

    Returns:
        [n, 1, HEIGHT, WIDTH] float32 in [-1, 1].
    """
    strip = strips(ids)
    ink = torch.zeros(len(ids), HEIGHT, WIDTH + CAPTION_LENGTH * PITCH, dtype=torch.bool)
    image, row, column = strip.nonzero(as_tuple=True)
    ink[image, top_left[image, 0] + row, top_left[image, 1] + column] = True
    return 1 - 2 * ink[:, None, :, :WIDTH].float()


def render(words: Tensor, generator: torch.Generator) -> Tensor:
    """Clean images of words [n] at uniform positions with a margin of a pixel; [n, 1, HEIGHT, WIDTH] in [-1, 1]."""
    ids = tokens()[words]
    room_x = WIDTH - 2 * MARGIN - (PITCH * (ids > 0).sum(1) - (PITCH - GLYPH_WIDTH))
    room_y = HEIGHT - 2 * MARGIN - GLYPH_HEIGHT
    share = torch.rand(len(words), 2, generator=generator)
    top = (share[:, 0] * (room_y + 1)).long()
    left = (share[:, 1] * (room_x + 1)).long()
    return paint(ids, MARGIN + torch.stack([top, left], dim=1))
