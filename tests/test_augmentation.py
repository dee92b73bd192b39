"""Augmentation: each change does what it says, the result is an image again, and no change is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from flowknife.apps import ImagesConfig
from flowknife.data import Augmentation, augment
from flowknife.laws import Pixels

EVERYTHING = {"zoom": 0.2, "shear": 0.2, "rotation": 20.0, "shift": 0.1, "brightness": 0.3, "flip": True}
KEY = jax.random.key(0)


def images(n=40, height=12, width=12, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def square(n=50, side=12, height=12, width=12):
    """A bright square of 2 x 2 pixels in the middle of the dark."""
    x = np.zeros((n, height, width, 1), np.uint8)
    x[:, height // 2 - 1 : height // 2 + 1, width // 2 - 1 : width // 2 + 1] = 200
    return x


def changed(x, flip=None, key=KEY, **settings):
    return np.asarray(augment(key, jnp.asarray(x), Augmentation(**settings), flip))


def blob(n=60, side=32, width=4.0, ratio=3.0):
    """A smooth bright spot in the middle, `ratio` times as wide as it is high."""
    i, j = np.meshgrid(np.arange(side) - (side - 1) / 2, np.arange(side) - (side - 1) / 2, indexing="ij")
    spot = 250 * np.exp(-0.5 * (i**2 + (j / ratio) ** 2) / (width / ratio) ** 2)
    return np.broadcast_to(np.round(spot)[None, ..., None], (n, side, side, 1)).astype(np.uint8)


def moments(x):
    """Second moments (rows, columns, both) of the brightness of every image."""
    x = x[..., 0].astype(float)
    i = np.arange(x.shape[1])[:, None] - (x.shape[1] - 1) / 2
    j = np.arange(x.shape[2])[None, :] - (x.shape[2] - 1) / 2
    total = x.sum(axis=(1, 2))
    return [(x * weight).sum(axis=(1, 2)) / total for weight in (i * i, j * j, i * j)]


def test_nothing_asked_is_nothing_done():
    x = jnp.asarray(images())
    assert augment(KEY, x, Augmentation()) is x
    assert ImagesConfig().augment == Augmentation()
    jaxpr = jax.make_jaxpr(lambda x: augment(KEY, x, Augmentation()))(x)
    assert jaxpr.out_avals[0].dtype == jnp.uint8
    # nothing but the split of the key is left, and that is not used
    assert not any(eqn.primitive.name in ("gather", "select_n", "mul") for eqn in jaxpr.jaxpr.eqns)


def test_half_of_the_images_are_mirrored_exactly():
    x = images(n=400, height=5, width=6)
    y = changed(x, flip=True)
    same, mirrored = ((y == z).all(axis=(1, 2, 3)) for z in (x, x[:, :, ::-1]))
    assert y.dtype == np.uint8 and np.all(same ^ mirrored)
    assert 150 < mirrored.sum() < 250
    np.testing.assert_array_equal(changed(x, flip=None), x)
    np.testing.assert_array_equal(augment(KEY, jnp.asarray(x), Augmentation(flip=True)), y)
    np.testing.assert_array_equal(augment(KEY, jnp.asarray(x), Augmentation(flip=True), False), x)


@pytest.mark.parametrize("setting", EVERYTHING)
def test_every_setting_changes_images_and_depends_on_the_key(setting):
    x = images()
    first, again, other = (changed(x, key=jax.random.key(k), **{setting: EVERYTHING[setting]}) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != x) and np.any(first != other)


def test_the_result_is_a_discrete_image():
    y = changed(images(), **EVERYTHING)
    assert y.min() >= 0 and y.max() <= 255
    np.testing.assert_array_equal(y, np.round(y))
    for bits in (8, 5):
        law = Pixels(bits)
        levels = law.prepare(jax.random.key(1), jnp.asarray(y), (), y.shape[1:])
        expected = y.astype(int) // 2 ** (8 - bits)
        np.testing.assert_array_equal(np.floor(levels), expected)
        back = np.asarray(law.restore(levels)).astype(int) // 2 ** (8 - bits)
        np.testing.assert_array_equal(back, expected)


def test_images_are_moved_and_keep_their_brightness():
    x = square()
    whole, part, slanted = (changed(x, **m) for m in ({"shift": 0.2}, {"shift": 0.05}, {"shear": 0.3}))
    assert set(np.unique(whole)) == {0.0, 200.0}
    assert len({tuple(np.argwhere(image[..., 0])[0]) for image in whole}) > 5
    for moved in (part, slanted):
        assert len(np.unique(moved)) > 10
        np.testing.assert_allclose(moved.sum(axis=(1, 2, 3)), 800, atol=4)  # of whole numbers
    # a shear leaves every row where it is
    np.testing.assert_allclose(slanted.sum(axis=(2, 3)), x.sum(axis=(2, 3)), atol=2)


def test_whole_pixels_move_as_far_as_asked_and_evenly():
    x = square(n=600, height=20, width=10)
    y = changed(x, shift=0.1)  # 2 rows, 1 column
    corners = np.array([np.argwhere(image[..., 0])[0] for image in y]) - [9, 4]
    rows, columns = (np.unique(c, return_counts=True) for c in corners.T)
    assert rows[0].tolist() == [-2, -1, 0, 1, 2] and rows[1].min() > 80
    assert columns[0].tolist() == [-1, 0, 1] and columns[1].min() > 150
    # what comes in is what lies at the edge, mirrored
    z = images(n=30, height=10, width=10, channels=1)
    padded = np.pad(z, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="symmetric")
    for before, after in zip(padded, changed(z, shift=0.1), strict=True):
        assert any(np.array_equal(after, before[i : i + 10, j : j + 10]) for i in range(3) for j in range(3))


def test_rotation_turns_by_at_most_the_angle_and_keeps_shape():
    x = blob()
    y = changed(x, rotation=30)
    (rows, columns, both), (a, b, _) = moments(y), (m[0] for m in moments(x))
    angles = np.rad2deg(0.5 * np.arctan2(2 * both, columns - rows))
    assert np.abs(angles).max() <= 31 and angles.max() > 20 and angles.min() < -20
    # the sum of the moments is what a rotation keeps
    np.testing.assert_allclose(rows + columns, a + b, rtol=0.05)


def test_zoom_scales_both_ways_and_shear_only_slants():
    x = blob(ratio=1.0)
    (a, b, _) = (m[0] for m in moments(x))
    rows, columns, both = moments(changed(x, zoom=0.25))
    factors = np.sqrt((rows + columns) / (a + b))
    assert factors.max() < 1.28 and factors.min() > 0.78 and factors.max() > 1.15 and factors.min() < 0.87
    np.testing.assert_allclose(rows, columns, rtol=0.05)
    np.testing.assert_allclose(both / a, 0, atol=0.05)
    rows, columns, both = moments(changed(x, shear=0.3))
    np.testing.assert_allclose(rows, a, rtol=0.05)
    np.testing.assert_allclose(columns - rows, both**2 / a, atol=0.1 * a)
    assert np.abs(both / a).max() < 0.31 and (both / a).max() > 0.2 and (both / a).min() < -0.2


def test_brightness_scales_the_whole_image():
    y = changed(np.full((200, 4, 4, 3), 100, np.uint8), brightness=0.2)
    assert np.all(y == y[:, :1, :1, :1])
    level = y[:, 0, 0, 0]
    assert 80 <= level.min() < 85 and 115 < level.max() <= 120
    assert changed(np.full((50, 4, 4, 1), 250, np.uint8), brightness=0.5).max() == 255


def test_images_of_a_batch_are_changed_each_in_its_own_way():
    y = changed(blob(n=20), **{**EVERYTHING, "flip": False})
    assert len({image.tobytes() for image in y}) == 20


def test_it_compiles_once_and_gives_the_same():
    traces = []

    @jax.jit
    def step(key, x):
        traces.append(0)
        return augment(key, x, Augmentation(**EVERYTHING))

    x = jnp.asarray(images(n=8))
    keys = jax.random.split(KEY, 3)
    for key in keys:
        np.testing.assert_allclose(step(key, x), augment(key, x, Augmentation(**EVERYTHING)), atol=1)
    assert len(traces) == 1


@pytest.mark.parametrize("wrong", [{"zoom": 1.0}, {"rotation": -1}, {"shift": 0.5}, {"brightness": 1}, {"tilt": 3}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        Augmentation(**wrong)
