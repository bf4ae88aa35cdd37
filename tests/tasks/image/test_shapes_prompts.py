"""The catalogue, the split and the frozen evaluation set."""

import pytest
import torch

from tasks.image.prompts import (
    CAPTION_LENGTH,
    EVAL_GROUPS,
    KINDS,
    VOCABULARY,
    catalogue,
    evaluation_digest,
    evaluation_prompts,
    sample_prompts,
    tables,
)

EVALUATION_DIGEST = "440694abb0de0f0e597628627c3b8dc4434f2dccd0b4231c8a6b39855d4db902"


def test_catalogue_counts_by_kind() -> None:
    # 12 objects: 12 single; 2 counts of each = 24; ordered pairs 12 * 11 = 132, of which sharing one attribute
    # 12 * (3 + 2) = 60 and sharing none 12 * 6 = 72; two relations * 132 = 264.
    counts = {kind: sum(p.kind == kind for p in catalogue()) for kind in KINDS}
    assert counts == {"single": 12, "count": 24, "two": 60, "binding": 72, "position": 264}


def test_captions_and_tokens_tell_prompts_apart() -> None:
    assert len({p.caption for p in catalogue()}) == len({p.tokens for p in catalogue()}) == len(catalogue())
    assert {len(p.tokens) for p in catalogue()} == {CAPTION_LENGTH}


def test_tokens_spell_the_caption() -> None:
    prompt = next(p for p in catalogue() if p.caption == "a red square left of a blue diamond")
    words = [VOCABULARY[token] for token in prompt.tokens]
    assert words == ["a", "red", "square", "left of", "a", "blue", "diamond"]
    three = next(p for p in catalogue() if p.caption == "three green triangles")
    assert [VOCABULARY[token] for token in three.tokens[:3]] == ["three", "green", "triangle"]


def test_tables_repeat_the_catalogue() -> None:
    row = next(i for i, p in enumerate(catalogue()) if p.caption == "two blue diamonds")
    # blue = 2, diamond = 1: type 2 * 3 + 1 = 7.
    assert tables().required[row].nonzero().tolist() == [[7]]
    assert tables().required[row, 7] == 2
    assert tables().ends[row].tolist() == [7, 7]


def test_held_out_pairs_are_held_out_in_both_orders_and_all_kinds() -> None:
    pairs = [p for p in catalogue() if len(set(p.objects)) == 2]
    out = {frozenset(p.objects) for p in pairs if p.held_out}
    assert len(out) == 16
    assert not out & {frozenset(p.objects) for p in pairs if not p.held_out}


def test_splits_do_not_overlap() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = {
        split: set(sample_prompts(3000, generator, split=split).tolist()) for split in ("train", "held_out", "all")
    }
    assert not drawn["train"] & drawn["held_out"]
    assert drawn["all"] & drawn["train"]
    assert drawn["all"] & drawn["held_out"]


def test_kinds_are_drawn_by_weight() -> None:
    drawn = tables().kind[sample_prompts(20_000, torch.Generator().manual_seed(0), split="train")]
    share = torch.bincount(drawn, minlength=len(KINDS)) / 20_000
    # Weights .10 .20 .15 .20 .35; the standard error of a share of 20,000 is at most .0034.
    assert torch.allclose(share, torch.tensor([0.10, 0.20, 0.15, 0.20, 0.35]), atol=0.015)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="train, held_out or all"):
        sample_prompts(1, torch.Generator(), split="test")


def test_evaluation_set_is_held_out_and_frozen() -> None:
    rows = evaluation_prompts()
    assert all(catalogue()[int(row)].held_out for row in rows)
    kinds = [catalogue()[int(row)].kind for row in rows]
    assert {kind: kinds.count(kind) for kind in KINDS} == EVAL_GROUPS
    assert evaluation_digest() == EVALUATION_DIGEST
