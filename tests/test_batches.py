"""Batches: few sizes, every item once, and no items at all."""

import jax
import numpy as np
import pytest

import flowknife as fk
from flowknife import objectives
from flowknife._batches import bucket, draw_batches, in_batches, map_batches


def test_batch_sizes_are_few_and_waste_little():
    assert [bucket(n) for n in (0, 1, 256, 257, 1024, 1025, 10_000)] == [256, 256, 256, 1024, 1024, 2048, 10_240]
    assert bucket(10**6, most=16_384) == 16_384
    assert len({bucket(n, 16_384) for n in range(1, 100_000)}) == 17


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
def test_every_item_is_in_one_batch(count):
    items = np.arange(2.0 * count).reshape(count, 2)
    sizes = {part.shape for _, part in in_batches(items)}
    doubled, first = map_batches(lambda part: [2 * part, part[:, 0]], items)
    assert sizes == {(64, 2)}
    np.testing.assert_array_equal(doubled, 2 * items)
    np.testing.assert_array_equal(first, items[:, 0])


def test_wide_items_come_in_small_batches():
    assert {part.shape for _, part in in_batches(np.zeros((3, 500_000)))} == {(1, 500_000)}


def test_draws_of_different_batches_differ():
    drawn = draw_batches(lambda key, size, _: jax.random.normal(key, (size, 2)), 200, jax.random.key(0), most=64)
    assert drawn.shape == (200, 2) and len(np.unique(drawn)) == 400


@pytest.mark.parametrize("rows", [1, 200])
def test_every_draw_has_its_own_row_of_what_is_given(rows):
    given = {"y": np.arange(rows)[:, None]}
    drawn = draw_batches(lambda key, size, part: part["y"], 200, jax.random.key(0), most=64, given=given)
    np.testing.assert_array_equal(drawn, np.broadcast_to(given["y"], (200, 1)))


def test_several_arrays_are_cut_alike():
    items = (np.arange(70), {"y": np.arange(140.0).reshape(70, 2)})
    (found,) = map_batches(lambda part: [part[0][:, None] + part[1]["y"]], items)
    np.testing.assert_array_equal(found, np.arange(70)[:, None] + items[1]["y"])


def test_a_density_of_any_number_of_rows_compiles_once():
    x = np.random.default_rng(0).normal(size=(80, 2))
    flow = fk.density(x, layers=1, width=4, scalar="affine", train={"steps": 2}, key=0, show_progress=False)
    trained = objectives.log_probs._cached._cache_size()
    whole = flow.log_prob(x[:60])
    assert objectives.log_probs._cached._cache_size() == trained, "training asks by the same program"
    before = _compiled()
    for count in (1, 7, 59):
        np.testing.assert_allclose(flow.log_prob(x[:count]), whole[:count], rtol=1e-6)
        assert flow.sample(count, key=0).shape == (count, 2)
    assert _compiled() - before <= 1  # that of sampling


def _compiled():
    from flowknife.apps.density import _result

    return sum(program._cached._cache_size() for program in (objectives.log_probs, _result._sample))
