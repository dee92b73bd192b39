"""Laws that hold for whatever comes, looked for by hypothesis: splits, frames, batches, cells, labels, settings, ends.

Most of them compute with NumPy only. What needs JAX is traced, or compiled for a few examples.
"""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from flowknife._batches import bucket, in_batches
from flowknife._frame import Frame
from flowknife._settings import leaves, merged
from flowknife._split import Sizes, fewest_calibration_rows, rounded, split, split_sizes
from flowknife.bijections import LU, ActNorm, Affine, Chain, Elementwise, Permute, ShiftScale
from flowknife.data import load_table, save_table
from flowknife.data._cells import array_of, as_named, as_written, inert, is_missing, number_in, numbers_of, plain
from flowknife.data.labels import as_codes, codes_of, label_codes
from flowknife.errors import InputError
from flowknife.inn import INN, Block
from flowknife.laws import Given, Noise, Pad
from tests.catalogue import quick_jit

# the same examples every time, and no clock
settings.register_profile("flowknife", max_examples=25, derandomize=True, deadline=None, database=None)
settings.load_profile("flowknife")

FEW = settings(max_examples=4)
ALPHAS = st.floats(0.001, 0.5)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


# -- the hold-out -----------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@example(rows=20, share=None, alpha=0.05, left=18)
@given(
    rows=st.integers(1, 3000),
    share=st.none() | st.just(0) | st.floats(0, 0.9),
    alpha=st.none() | ALPHAS,
    left=st.integers(1, 40),
)
def test_the_parts_of_a_split_fit_into_what_may_be_held_out(rows, share, alpha, left):
    spare = max(rows - left, 0)
    sizes = split_sizes(rows, share, alpha, spare=spare)
    assert min(sizes) >= 0 and sum(sizes) <= spare
    if share == 0 or alpha is None:
        assert sizes.calibration == 0
    if spare and share != 0:
        assert sizes.stopping >= 1
    if alpha and sizes.calibration >= fewest_calibration_rows(alpha):  # then something can be flagged, and no more
        ranks = max(r for r in range(sizes.calibration + 1) if r / (sizes.calibration + 1) < alpha)
        assert ranks >= 1 and sizes.calibration in (
            fewest_calibration_rows(alpha, ranks),
            sizes.calibration,
        )


@given(alpha=ALPHAS, ranks=st.integers(1, 5))
def test_the_fewest_calibration_rows_are_the_fewest(alpha, ranks):
    rows = fewest_calibration_rows(alpha, ranks)
    assert ranks / (rows + 1) < alpha and (rows == 0 or not ranks / rows < alpha)


@given(st.integers(0, 10**7))
def test_a_rounded_number_is_at_most_an_eighth_smaller(count):
    assert count * 7 / 8 <= rounded(count) <= count and rounded(rounded(count)) == rounded(count)
    assert rounded(count) < 16 or rounded(count) % (1 << (rounded(count).bit_length() - 4)) == 0


@given(rows=st.sampled_from([3, 16, 40]), data=st.data())
def test_every_row_is_in_one_part_and_every_group_is_trained_on(rows, data):
    groups = np.array(data.draw(st.lists(st.integers(0, 4), min_size=rows, max_size=rows)))
    held = data.draw(st.integers(0, rows - len(np.unique(groups))))
    stopping = data.draw(st.integers(0, held))
    parts = split(rows, Sizes(stopping, held - stopping), jax.random.key(data.draw(st.integers(0, 99))), groups=groups)
    assert sorted(np.concatenate(parts)) == list(range(rows))
    assert (len(parts.stopping), len(parts.calibration)) == (stopping, held - stopping)
    assert set(groups[parts.train]) == set(groups)


# -- frames -----------------------------------------------------------------------------------------------------------

NUMBERS = st.floats(-1e30, 1e30).filter(lambda x: x == 0 or abs(x) > 1e-30)


@st.composite
def tables(draw, rows=None):
    """Columns around a place, of a width, some of them constant."""
    n, parts = rows or draw(st.integers(2, 12)), []
    for _ in range(draw(st.integers(1, 4))):
        place, width = draw(st.sampled_from([0, 1, -3e9, 1e-9, 7e15])), draw(st.sampled_from([0, 1e-12, 1, 60, 1e20]))
        parts.append(place + width * draw(arrays(float, n, elements=st.floats(-1, 1).filter(lambda x: abs(x) > 1e-9))))
    return np.stack(parts, axis=1)


@given(values=tables(), drop_constant=st.booleans())
def test_a_frame_gives_back_what_it_is_given(values, drop_constant):
    frame = Frame.of(values, drop_constant)
    inside = frame.inside(values)
    assert inside.shape == (len(values), frame.dim) and frame.dim + len(frame.constant) == values.shape[1]
    moved = np.abs(values) + np.abs(np.asarray(frame.origin))
    np.testing.assert_array_less(np.abs(frame.from_model(inside) - values), 1e-15 * moved + 1e-300)
    with np.errstate(over="ignore"):
        rough = np.abs(frame.from_model(frame.to_model(values)) - values)
    allowed = 1e-7 * np.abs(values - np.asarray(frame.origin)) + 1e-15 * moved + 1e-300
    np.testing.assert_array_less(rough, allowed + 1e-37 * np.asarray(frame.scale))
    assert frame.log_det == pytest.approx(-sum(math.log(frame.scale[i]) for i in frame.kept))
    assert frame.possible(values).all()
    np.testing.assert_allclose(frame.widths_from_model(frame.widths_to_model(np.ones(values.shape[1])))[frame.kept], 1)


@given(one=tables(rows=3), other=tables(rows=3))
def test_joined_frames_are_side_by_side(one, other):
    frames = [Frame.of(values, drop_constant=True) for values in (one, other)]
    joined, both = frames[0].join(frames[1]), np.concatenate([one, other], axis=1)
    parts = [frame.inside(values) for frame, values in zip(frames, (one, other), strict=True)]
    np.testing.assert_array_equal(joined.inside(both), np.concatenate(parts, axis=1))
    assert joined.log_det == pytest.approx(sum(frame.log_det for frame in frames))


# -- batches ----------------------------------------------------------------------------------------------------------


@given(rows=st.integers(0, 300), most=st.integers(1, 200), shape=array_shapes(max_dims=2, max_side=3))
def test_batches_are_of_one_size_and_hold_every_item_once(rows, most, shape):
    items = {"x": np.arange(rows * math.prod(shape)).reshape(rows, *shape), "n": np.arange(rows)}
    counts, batches = zip(*in_batches(items, most), strict=True)
    sizes = {len(batch["x"]) for batch in batches}
    assert len(sizes) == 1 and sizes.pop() <= most and sum(counts) == rows
    for name, array in items.items():
        held = [batch[name][:count] for count, batch in zip(counts, batches, strict=True)]
        np.testing.assert_array_equal(np.concatenate(held), array)


@given(st.integers(0, 10**6), st.none() | st.integers(1, 10**6))
def test_a_batch_size_holds_the_items_or_is_the_largest(count, most):
    size = bucket(count, most)
    assert size >= count or size == most
    assert most is not None or size <= max(256, 4 * count)


# -- cells ------------------------------------------------------------------------------------------------------------

CELLS = st.text("0123456789+-._eEnaifNtrul xX,'=@\t", max_size=6) | st.floats().map(repr) | st.integers().map(str)


@given(st.floats(allow_nan=False), st.sampled_from(["", " ", "\t"]))
def test_a_number_is_read_as_it_is_written(number, space):
    assert number_in(f"{space}{number!r}{space}") == number


@settings(max_examples=200)
@example(["-nan"])
@given(st.lists(CELLS, min_size=1, max_size=3))
def test_float_reads_plain_cells_as_they_are_meant(cells):
    assume(plain(cells))
    for cell in cells:
        try:
            number = float(cell)
        except ValueError:
            continue
        np.testing.assert_equal(number_in(cell), number)


@settings(max_examples=200)
@example("'=1")
@example("''=1")
@given(CELLS | TEXT)
def test_text_that_a_spreadsheet_would_compute_is_quoted_and_comes_back(cell):
    written = inert(cell)
    assert as_named(written) == cell
    assert not written.startswith(("=", "+", "-", "@", "\t", "\r")) or number_in(written) is not None


@settings(max_examples=100)
@given(st.lists(CELLS | TEXT, min_size=1, max_size=5))
def test_different_cells_stay_different(cells):
    values = as_written(cells)
    assert len(values) == len(cells)
    for (one, a), (other, b) in itertools.combinations(zip(cells, values, strict=True), 2):
        same = as_named(one.strip()) == as_named(other.strip())
        assert (a == b and type(a) is type(b)) == same


@given(st.lists(st.none() | st.floats() | st.integers(-(2**53), 2**53) | st.booleans(), min_size=1, max_size=6))
def test_numbers_of_any_kind_are_read_as_numbers(cells):
    numbers = numbers_of(array_of(cells))
    np.testing.assert_array_equal(numbers, [np.nan if is_missing(cell) else float(cell) for cell in cells])


@given(
    values=arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 3)), elements=NUMBERS),
    suffix=st.sampled_from([".csv", ".tsv", ".csv.gz", ".npy", ".npz"]),
    data=st.data(),
)
def test_a_table_is_read_as_it_was_written(values, suffix, data, tmp_path_factory):
    words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=6)
    count = values.shape[1]
    names = data.draw(st.lists(words.map("n{}".format), min_size=count, max_size=count, unique=True))
    path = tmp_path_factory.getbasetemp() / f"table{suffix}"
    save_table(path, values, names)
    table = load_table(path, min_rows=1)
    assert table.names == tuple(names if "sv" in suffix else [f"x{i + 1}" for i in range(count)])
    exact = values if table.values.dtype == np.float64 else values.astype(np.float32)
    np.testing.assert_array_equal(table.values, exact)


# -- labels -----------------------------------------------------------------------------------------------------------

KINDS = (st.integers(-99, 99), st.booleans(), TEXT.filter(str.strip), st.integers(-9, 9).map(float))


@settings(max_examples=50)
@given(st.sampled_from(KINDS).flatmap(lambda kind: st.lists(st.none() | kind, min_size=2, max_size=9)))
def test_labels_are_what_they_were(labels):
    known = {label for label in labels if label is not None}
    if len(known) < 2:
        with pytest.raises(InputError):
            label_codes(labels, len(labels))
        return
    classes, codes = label_codes(labels, len(labels))
    assert list(classes) == sorted(known) and {type(c) for c in classes} == {type(c) for c in known}
    assert [None if code < 0 else classes[code] for code in codes] == labels
    np.testing.assert_array_equal(codes_of(labels, classes), codes)
    np.testing.assert_array_equal(codes_of([str(c) for c in classes], classes), np.arange(len(classes)))
    assert [int(as_codes(c, classes)) for c in classes] == list(range(len(classes)))


# -- settings ---------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from("abc")
NESTED = st.dictionaries(
    NAMES,
    st.recursive(st.integers(), lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=6),
    max_size=3,
)


@settings(max_examples=50)
@given(NESTED, NESTED)
def test_later_settings_win_and_all_others_stay(early, late):
    both, asked = dict(leaves(merged(early, late))), dict(leaves(late))
    assert merged(early) == merged(dict(leaves(early))) == early
    assert merged(early, late, late) == merged(early, late)
    for key, value in asked.items():
        assert both[key] == value if value != {} else any(f"{name}.".startswith(f"{key}.") for name in both)
    for key, value in leaves(early):
        touched = [other for other in asked if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")]
        assert touched or both[key] == value


# -- ends and stacks --------------------------------------------------------------------------------------------------

TOTAL = 6


@st.composite
def ends(draw):
    """Blocks whose sizes add up to TOTAL, in vectors and matrices."""
    cuts = sorted(draw(st.sets(st.integers(1, TOTAL - 1), max_size=2)))
    sizes = np.diff([0, *cuts, TOTAL]).tolist()
    return [draw(st.sampled_from([(size,), (1, size), (size, 1)])) for size in sizes]


def blocks(prefix, shapes):
    return [Block(f"{prefix}{i}", shape) for i, shape in enumerate(shapes)]


@FEW
@given(left=ends(), right=ends())
def test_blocks_of_any_shape_are_one_row_of_numbers_at_both_ends(left, right):
    inn = INN(blocks("x", left), blocks("z", right), Elementwise(ShiftScale(), TOTAL))
    inn = eqx.tree_at(lambda inn: inn.bijection.raw, inn, jnp.linspace(-1.0, 1.0, 2 * TOTAL).reshape(TOTAL, 2))
    rng = np.random.default_rng(0)
    x = {f"x{i}": rng.normal(size=(2, *shape)).astype(np.float32) for i, shape in enumerate(left)}

    @quick_jit
    def look(x):
        z = inn.encode(x)
        rows = jnp.concatenate([part.reshape(2, -1) for part in x.values()], axis=1)
        return z, inn.decode(z), inn.log_prob(x), inn.block_log_probs(x), inn.bijection.encode(rows)

    z, back, log_prob, terms, (row, _) = look(x)
    assert [part.shape for part in z.values()] == [(2, *shape) for shape in right]
    np.testing.assert_allclose(np.concatenate([np.reshape(part, (2, -1)) for part in z.values()], axis=1), row)
    for name, part in x.items():
        np.testing.assert_allclose(back[name], part, atol=1e-6)
    np.testing.assert_allclose(sum(np.asarray(term) for term in terms.values()), log_prob, rtol=1e-5)


@settings(max_examples=100)
@given(sizes=st.lists(st.integers(1, 4), min_size=4, max_size=4), clash=st.booleans(), condition=st.booleans())
def test_ends_that_do_not_fit_are_refused(sizes, clash, condition):
    data, pad, noise, latent = sizes
    left = [Block("x", data), Block("p", pad, Pad()), Block("e", noise, Noise(1.0, added_to="y"))]
    right = [Block("x" if clash else "y", noise, Given(0.1)), Block("z", latent)]
    cond = [Block("c", 2)] if condition else []
    fits = not clash and not condition and data + pad == latent
    try:
        INN(left, right, Elementwise(ShiftScale(), data + pad + noise), cond)
    except InputError:
        assert not fits
    else:
        assert fits


LAYERS = {
    "lu": lambda key: LU(3, key=key),
    "actnorm": lambda key: ActNorm(3),
    "affine": lambda key: Affine(jnp.arange(3.0), jnp.asarray([0.5, 2.0, 3.0])),
    "scale": lambda key: Elementwise(ShiftScale(), 3),
    "permutation": lambda key: Permute.random(3, key=key),
}


@FEW
@given(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=5))
def test_a_stack_is_its_layers_one_after_another(names):
    layers = [LAYERS[name](jax.random.key(i)) for i, name in enumerate(names)]
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)

    @quick_jit
    def look(layers, x):
        y, total = Chain(layers).encode(x)
        z, log_det = x, 0.0
        for layer in layers:
            z, part = layer.encode(z)
            log_det += part
        return (y, total), (z, log_det), Chain(layers).decode(y)

    (y, total), (z, log_det), (back, same) = look(layers, x)
    np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, log_det, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(back, x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(same, total, rtol=1e-4, atol=1e-4)
