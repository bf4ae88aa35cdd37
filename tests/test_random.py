import pytest
import torch

from rlflow.random import STREAMS, Noise, RowNoise, Streams, derived_seed, generator


def test_derived_seeds_differ_by_every_part_of_the_path():
    seeds = {derived_seed(0, "a"), derived_seed(1, "a"), derived_seed(0, "b"), derived_seed(0, "a", 1)}
    assert len(seeds) == 4
    assert derived_seed(3, "a", 1) == derived_seed(3, "a", 1)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_streams_are_independent_and_named():
    streams = Streams(0)
    first = {name: float(torch.rand(1, generator=streams[name])) for name in STREAMS}
    assert len(set(first.values())) == len(STREAMS)
    with pytest.raises(KeyError):
        streams["weights"]


def test_streams_continue_where_the_state_was_taken():
    streams = Streams(5)
    torch.rand(3, generator=streams["rollout"])
    state = {name: value.clone() for name, value in streams.state_dict().items()}
    following = torch.rand(4, generator=streams["rollout"])
    restored = Streams(6)
    restored.load_state_dict(state)
    assert torch.equal(torch.rand(4, generator=restored["rollout"]), following)


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_ranks_together_draw_the_batch_of_one_process(draw):
    whole = getattr(Noise(generator=generator(0)), draw)((4, 3))
    ranks = [getattr(Noise(generator=generator(0), rank=r, world_size=2), draw)((2, 3)) for r in (0, 1)]
    assert torch.equal(torch.cat(ranks), whole)


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_a_row_with_its_own_seed_draws_the_same_among_any_others(draw):
    def drawn(*seeds):
        noise = RowNoise(generator=generator(0), seeds=seeds)
        return torch.stack([getattr(noise, draw)((len(seeds), 3)) for _ in range(2)], dim=1)

    both = drawn(7, 8)
    assert torch.equal(drawn(9, 8, 7)[[2, 1]], both)
    # Neither two rows nor two draws are alike.
    assert len({tuple(row) for row in both.flatten(0, 1).tolist()}) == 4
    with pytest.raises(ValueError, match="expected noise for 2 rows, one seed each, found 3"):
        getattr(RowNoise(generator=generator(0), seeds=(1, 2)), draw)((3, 1))


def test_integer_is_the_same_on_every_rank_and_within_its_range():
    draws = [[Noise(generator=generator(s), rank=r, world_size=2).integer(3) for s in range(30)] for r in (0, 1)]
    assert draws[0] == draws[1]
    assert set(draws[0]) == {0, 1, 2}
