"""The catalogue of words, its split, and pictures that hold exactly the asked letters."""

import torch

from tasks.image.text_words import (
    ALPHABET,
    EVAL_GROUPS,
    GLYPH_HEIGHT,
    HEIGHT,
    HELD_OUT_PER_LENGTH,
    WIDTH,
    catalogue,
    evaluation_digest,
    evaluation_words,
    glyphs,
    held_out,
    paint,
    render,
    sample_words,
    strips,
    tokens,
)


def test_the_catalogue_is_distinct_and_spelled_in_tokens() -> None:
    assert len(set(catalogue())) == len(catalogue()) == 1024
    assert [sum(len(word) == n for word in catalogue()) for n in (3, 4)] == [512, 512]
    for row in (0, 511, 512, 1023):
        spelled = "".join(ALPHABET[i - 1] for i in tokens()[row].tolist() if i)
        assert spelled == catalogue()[row]


def test_the_split_is_fixed_and_even() -> None:
    lengths = torch.tensor([len(word) for word in catalogue()])
    assert [int(held_out()[lengths == n].sum()) for n in (3, 4)] == [HELD_OUT_PER_LENGTH] * 2
    words = evaluation_words()
    assert len(words.unique()) == EVAL_GROUPS
    assert bool(held_out()[words].all())
    # Three and four letters in turn.
    assert lengths[words][:4].tolist() == [3, 4, 3, 4]
    assert evaluation_digest() == "db02b5b6f0d1d688a7c6c05c7130b778f1fec5c6e5db53e510be0fea5d91b762"


def test_a_picture_by_hand() -> None:
    ids = torch.tensor([[1 + ALPHABET.index("T"), 1 + ALPHABET.index("L"), 0, 0]])
    image = paint(ids, torch.tensor([[2, 3]]))[0, 0]
    # T: a bar in row 2 from column 3 to 7 and a stem in column 5; L from column 9: a stem and a foot in row 8.
    ink = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    ink[2, 3:8] = ink[2:9, 5] = ink[2:9, 9] = ink[8, 9:14] = True
    assert torch.equal(image < 0, ink)
    assert set(image.unique().tolist()) == {-1.0, 1.0}


def test_renders_keep_every_letter_and_the_margin() -> None:
    rows = torch.arange(1024)
    images = render(rows, torch.Generator().manual_seed(0))
    assert images.shape == (1024, 1, 12, 28)
    assert torch.equal((images < 0).flatten(1).sum(1), strips(tokens()).flatten(1).sum(1))
    edge = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], dim=-1)
    assert bool((edge == 1).all())
    # 12 - 2 - 7 + 1 = 4 heights; three letters are 17 wide: 28 - 2 - 17 + 1 = 10 places, four letters 4.
    tops = (images[:, 0] < 0).any(2).float().argmax(1)
    assert tops.unique().tolist() == [1, 2, 3, 4]
    again = render(rows, torch.Generator().manual_seed(0))
    assert torch.equal(images, again)


def test_letters_differ() -> None:
    flat = glyphs()[1:].flatten(1).float()
    distance = (flat[:, None] - flat[None]).abs().sum(2) + 99 * torch.eye(len(flat))
    assert glyphs().shape == (1 + len(ALPHABET), GLYPH_HEIGHT, 5)
    # C and E are the nearest.
    assert distance.min() >= 5


def test_words_are_drawn_evenly() -> None:
    rows = sample_words(4000, torch.Generator().manual_seed(0))
    # Half have three letters; the standard error of 4,000 draws is .008.
    assert abs((rows < 512).float().mean() - 0.5) < 0.04
