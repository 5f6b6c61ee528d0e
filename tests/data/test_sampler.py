"""The order and the draws: their distribution, and what they depend on."""

import numpy as np
import pytest

from fastalex.data.sampler import batch_ids, check_ranks, epoch_draws, steps_per_epoch
from fastalex.errors import UsageError

N = 60_000


@pytest.mark.parametrize("size", [224, 227, 256, 1])
def test_windows_are_uniform_over_all_positions_borders_included(size: int) -> None:
    draws = epoch_draws(3, 0, N, size)
    positions = 257 - size
    for corner in (draws.top, draws.left):
        counts = np.bincount(corner, minlength=positions)
        assert len(counts) == positions
        expected = N / positions
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_flips_and_normals() -> None:
    draws = epoch_draws(3, 0, N, 224)
    assert abs(draws.flip.mean() - 0.5) < 5 * 0.5 / np.sqrt(N)
    normals = draws.normals
    assert normals.shape == (N, 3)
    assert np.abs(normals.mean(0)).max() < 5 / np.sqrt(N)
    assert np.abs(np.cov(normals.T) - np.eye(3)).max() < 5 * np.sqrt(2 / N)
    assert abs((np.abs(normals) < 1).mean() - 0.6827) < 0.01
    assert abs((normals**4).mean() - 3) < 0.2


def test_draws_are_independent_of_each_other_and_of_the_epoch() -> None:
    a, b = epoch_draws(3, 0, N, 224), epoch_draws(3, 1, N, 224)
    place = np.argsort(a.order)
    columns = [place, a.top, a.left, a.flip, *a.normals.T]
    columns += [np.argsort(b.order), b.top, b.left, b.flip, *b.normals.T]
    correlation = np.corrcoef(np.array(columns, float)) - np.eye(len(columns))
    assert np.abs(correlation).max() < 5 / np.sqrt(N)


def test_order_is_a_permutation_of_its_own_for_every_seed_and_epoch() -> None:
    orders = [epoch_draws(seed, epoch, 500, 224).order for seed in (0, 1) for epoch in (0, 1)]
    assert all(np.array_equal(np.sort(order), np.arange(500)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 4
    again = epoch_draws(1, 1, 500, 224).order
    assert np.array_equal(again, orders[-1])


def test_draws_of_an_image_do_not_depend_on_how_many_there_are() -> None:
    few, many = epoch_draws(7, 2, 10, 224), epoch_draws(7, 2, 1000, 224)
    for name in ("top", "left", "flip", "normals"):
        assert np.array_equal(getattr(few, name), getattr(many, name)[:10])


def test_the_numbers_are_pinned() -> None:
    """Checkpoints resume by them: a change breaks every run that was begun before it."""
    draws = epoch_draws(42, 5, 6, 224)
    words = np.random.Philox(key=np.array([42, 5], np.uint64)).random_raw(48).reshape(6, 8)
    assert draws.order.tolist() == sorted(range(6), key=lambda i: words[i, 0])
    assert draws.top.tolist() == [int(w >> 32) * 33 >> 32 for w in words[:, 1].tolist()]
    assert draws.top.tolist() == PINNED["top"]
    assert draws.left.tolist() == PINNED["left"]
    assert draws.flip.astype(int).tolist() == PINNED["flip"]
    assert np.allclose(draws.normals[0], PINNED["normals"], rtol=0, atol=1e-6)


PINNED = {
    "top": [17, 20, 5, 5, 18, 29],
    "left": [6, 5, 10, 11, 0, 21],
    "flip": [0, 1, 0, 0, 0, 1],
    "normals": [2.200021, -1.648177, -1.481114],
}


def test_ranks_share_the_global_batch() -> None:
    draws = epoch_draws(0, 0, 100, 224)
    whole = batch_ids(draws, 3, 12, 0, 1)
    assert np.array_equal(whole, draws.order[36:48])
    parts = [batch_ids(draws, 3, 12, rank, 3) for rank in range(3)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_arguments_that_do_not_fit() -> None:
    assert steps_per_epoch(100, 32) == 3
    assert steps_per_epoch(32, 32) == 1
    with pytest.raises(UsageError, match="128 is more than the 100 training images; give 100 or l"):
        steps_per_epoch(100, 128)
    with pytest.raises(UsageError, match="1 or more, not 0"):
        steps_per_epoch(100, 0)
    for size in (0, 257):
        with pytest.raises(UsageError, match=rf"1\.\.256 pixels wide, not {size}"):
            epoch_draws(0, 0, 1, size)
    for seed in (-1, 2**64):
        with pytest.raises(UsageError, match="seed: must be"):
            epoch_draws(seed, 0, 1, 224)
    with pytest.raises(UsageError, match="multiple of the 2 ranks, not 3"):
        check_ranks(3, 0, 2)
    with pytest.raises(UsageError, match=r"in 0\.\.1, not 2"):
        check_ranks(4, 2, 2)
