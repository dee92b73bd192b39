"""Settings: what was asked and what was used survive a run directory, and either fits the same model again."""

import jax
import numpy as np
import pytest
from pydantic import ValidationError

import flowknife as fk
from flowknife import apps
from flowknife._record import Record
from flowknife._settings import asked, merged
from flowknife._types import as_key, as_seed
from flowknife.cli._settings import configured
from flowknife.data import digits
from flowknife.errors import InputError

QUIET = {"show_progress": False}
X = fk.data.TOYS["ring"].sample(200, key=0)
LABELS = fk.data.ring_labels(X)
IMAGES, DIGITS = digits()
PRIOR = fk.Uniform(low=[-2, -2], high=[2, 2])


def reloaded(result):
    """(asked, used) as a run directory keeps them."""
    text = result.record.model_dump_json(exclude_none=True)
    record = Record[type(result.config)].model_validate_json(text)
    return record.config, record.used


def weights(result):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(result.model) if isinstance(leaf, (jax.Array, np.ndarray))]


def assert_refits(fit, key, **settings):
    """Fit, and fit again from the settings asked and from those used: every weight is the same, bit by bit."""
    first = fit(key=key, **settings, **QUIET)
    for config in reloaded(first):
        again = fit(config=config, **QUIET)
        for one, other in zip(weights(first), weights(again), strict=True):
            np.testing.assert_array_equal(one, other)
        assert again.used == first.used
    return first


def test_settings_of_a_density_refit_it(tmp_path):
    key = jax.random.split(jax.random.key(3))[1]  # the seed that is stored gives this key again
    flow = assert_refits(
        lambda **k: fk.density(X, **k), key, layers=1, width=4, depth=1, scalar="affine", train={"steps": 3}
    )
    assert flow.config.seed > 2**32 and flow.config.train.batch_size is None and flow.config.smoothing is None
    assert flow.used.train.batch_size == 512 and flow.used.train.validation is None  # the rule of the split
    assert flow.used.smoothing == pytest.approx(0.1)
    flow.save(tmp_path / "run")
    loaded = fk.load(tmp_path / "run")
    assert (loaded.config, loaded.used) == (flow.config, flow.used)


@pytest.mark.slow
def test_settings_of_a_classifier_of_rows_refit_it():
    model = assert_refits(
        lambda **k: fk.classify(X, LABELS, **k),
        1,
        layers=1,
        width=4,
        depth=1,
        scalar="affine",
        train={"steps": 3, "patience": 2},
    )
    assert model.config.beta is None and model.used.beta == 4 and model.used.bits is None


@pytest.mark.slow
def test_settings_of_a_posterior_refit_it_with_all_its_candidates():
    settings = {"num_simulations": 60, "layers": 1, "width": 4, "depth": 1, "features": 2}
    stop = {"patience": 1, "evaluate_every": 1, "learning_rate": 0.5, "warmup": 0}  # ends after a few steps
    posterior = assert_refits(lambda **k: fk.invert(lambda x: x**2, PRIOR, **k), 2, **settings, train=stop)
    assert posterior.config.train.weight_decay is None and posterior.used.train.weight_decay in (0, 1, 5)
    assert posterior.used.scale is None and posterior.used.features == 2


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"architecture": "wavelet", "levels": 1, "bits": 3}, {"bits": 3}])
def test_settings_of_images_refit_them(settings):
    model = assert_refits(lambda **k: fk.images(IMAGES[:120], **k), 3, width=8, **settings, train={"steps": 3})
    assert model.config.train.validation is None and model.used.train.validation is None
    assert model.used.image_size == 8 and model.used.augment.flip is not None
    assert len(model.held_out_bits) == 20  # 24 of 120, of which 4 decide when to stop


@pytest.mark.slow
def test_settings_of_a_classifier_of_images_refit_it():
    fit = lambda **k: fk.classify(IMAGES[:120], DIGITS[:120], **k)  # noqa: E731
    model = assert_refits(fit, 3, layers=1, width=8, train={"steps": 3})
    assert model.used.smoothing is None and model.used.augment.rotation == 10 and model.used.bits == 5


def test_seeds_above_32_bits_differ():
    words = [jax.random.key_data(as_key(seed)).tolist() for seed in (0, 2**32, 2**40, 2**64 - 1)]
    assert words == [[0, 0], [1, 0], [256, 0], [2**32 - 1, 2**32 - 1]]
    assert as_seed(as_key(2**40 + 5)) == 2**40 + 5
    with pytest.raises(InputError, match=r"2\^64"):
        as_key(2**64)


# -- one merge --------------------------------------------------------------------------------------------------------


def test_settings_merge_at_every_depth():
    config = apps.ImagesConfig(augment={"zoom": 0.1}, train=fk.Training(minutes=3, clip=2))
    layers = {"train": {"clip": 1}, "augment.rotation": 5, "width": 16}, {"train.steps": 7, "width": 32}
    whole = merged(config.model_dump(exclude_unset=True), *layers)
    assert whole == {
        "augment": {"zoom": 0.1, "rotation": 5},
        "train": {"minutes": 3, "clip": 1, "steps": 7},
        "width": 32,
    }
    assert merged(whole, {"train": fk.Training(epochs=2)})["train"] == {
        "minutes": 3,
        "clip": 1,
        "steps": 7,
        "epochs": 2,
    }


def test_keyword_settings_are_merged_into_a_config():
    config = apps.DensityConfig(layers=1, smoothing=0.2, train={"steps": 2, "batch_size": 50})
    found = asked(apps.DensityConfig, config, {"train": {"batch_size": 40}, "smoothing": None}, seed=7)
    assert found == apps.DensityConfig(seed=7, layers=1, train={"steps": 2, "batch_size": 40})  # None opens it again


def test_none_is_open_everywhere():
    assert apps.DensityConfig(layers=None, train=None) == apps.DensityConfig()
    assert fk.Training(batch_size=None).model_fields_set == set()


@pytest.mark.parametrize("number", [np.int64(3), np.float32(3), np.array(3), 3.0])
def test_numpy_numbers_are_numbers(number):
    assert apps.DensityConfig(layers=number).layers == 3


@pytest.mark.parametrize("value", ["3", True, b"3", np.bool_(True), [3], float("inf"), float("nan")])
def test_text_and_truth_values_are_no_numbers(value):
    for name in ("layers", "alpha", "smoothing"):
        with pytest.raises(ValidationError):
            apps.DensityConfig(**{name: value})


# -- without effect ---------------------------------------------------------------------------------------------------

PAIRS = (X, X)


@pytest.mark.parametrize(
    ("fit", "words"),
    [
        (lambda: fk.density(X, train={"decay": 0.1}), r"train\.decay=0\.1 for train\.schedule=cosine"),
        (lambda: fk.fit(None, X, decay=0.1), r"got decay=0\.1 for schedule=cosine"),
        (lambda: fk.classify(X, LABELS, bits=5), "bits=5 for items=rows"),
        (lambda: fk.classify(X, LABELS, augment={"zoom": 0}), "augment=.* for items=rows"),
        (lambda: fk.classify(X, LABELS, image_size=8), "image_size=8 for items=rows"),
        (lambda: fk.classify(IMAGES, DIGITS, smoothing=0.1), "smoothing=0.1 for items=images"),
        (lambda: fk.images(IMAGES, architecture="glow", parallel=2), "parallel=2 for architecture=glow"),
        (lambda: fk.images(IMAGES[:30], memory="standard"), "memory=standard for architecture=lattice"),
        (lambda: fk.invert(pairs=PAIRS, num_simulations=100), "num_simulations=100 for data=pairs"),
        (lambda: fk.invert(lambda x: x, PRIOR, scale=0.1), "scale=0.1 for model=conditional"),
        (lambda: fk.invert(lambda x: x, PRIOR, noise=0.1, form="partitioned", scale=0.1), "partitioned with noise"),
        (lambda: fk.invert(lambda x: x, PRIOR, form="partitioned", features=3), "partitioned without noise"),
        (lambda: fk.invert(lambda x: x, PRIOR, independence=1), "independence=1.* for form=conditional"),
        (lambda: fk.density(X, {"layers": 2}), "got dict as config; expected DensityConfig"),
        (lambda: fk.density(X, apps.ImagesConfig()), "got ImagesConfig as config"),
    ],
)
def test_a_setting_without_effect_is_refused(fit, words):
    with pytest.raises(InputError, match=words) as caught:
        fit()
    assert "\n" not in str(caught.value)


# -- as written -------------------------------------------------------------------------------------------------------


def from_yaml(tmp_path, text, *settings, kind=apps.DensityConfig):
    (tmp_path / "f.yaml").write_text(text)
    return configured(kind, tmp_path / "f.yaml", settings).model_dump(exclude_unset=True)


@pytest.mark.parametrize(
    "value", ["1:30", "1:30:00", "010", "0o10", "0x10", "0b1", "1_000", "yes", "on", "off", "2024-01-01", "'5'", "''"]
)
def test_what_is_not_exactly_a_number_is_no_number(tmp_path, value):
    for texts in ((f"train.minutes: {value}", ()), ("", (f"train.minutes={value}",))):
        with pytest.raises(InputError, match=r"got train\.minutes='.*'; expected a plain number"):
            from_yaml(tmp_path, texts[0], *texts[1])


@pytest.mark.parametrize(("value", "number"), [("1e3", 1000), ("+5", 5), (".5", 0.5), ("5.", 5), ("1E+2", 100)])
def test_numbers_are_read_as_written(tmp_path, value, number):
    assert from_yaml(tmp_path, f"train: {{minutes: {value}}}") == {"train": {"minutes": number}}
    assert from_yaml(tmp_path, "", f"train.minutes={value}") == {"train": {"minutes": number}}


@pytest.mark.parametrize("value", ["~", "null", "Null", ""])
def test_null_leaves_a_setting_open(tmp_path, value):
    assert from_yaml(tmp_path, f"layers: {value}\ntrain.minutes: {value}") == {"train": {}}


@pytest.mark.parametrize(("value", "flip"), [("no", False), ("off", False), ("yes", True), ("false", False)])
def test_truth_values_are_read_where_one_is_expected(tmp_path, value, flip):
    assert from_yaml(tmp_path, f"augment: {{flip: {value}}}", kind=apps.ImagesConfig) == {"augment": {"flip": flip}}


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("seed: 1\nseed: 2\n", (), "got 'seed' twice, again in line 2"),
        ("train: {steps: 1, steps: 1}", (), "got 'steps' twice"),
        ("train.steps: 1\ntrain: {steps: 2}\n", (), r"train\.steps=1 and train\.steps=2"),
        ("train: 5\ntrain.steps: 2\n", (), r"train=5 and train\.steps=2"),
        ("", ("seed=1", "seed=2"), "seed=1 and seed=2 in --set"),
        ("", ("train={steps: 6}", "train.steps=5"), r"train\.steps=6 and train\.steps=5"),
        ("", ("seed={a: 1, a: 2}",), "got 'a' twice"),
        ("", ("seed=",), "without a value"),
        ("train: &a {x: *a}", (), "no YAML"),
        ("? [a]\n: 1\n", (), "no YAML"),
        ("1: 2", (), "unknown setting '1'"),
        ("on: 2", (), "unknown setting 'on'"),
        ("seed: !!int 010", (), "no YAML"),
        ("trian: {steps: 1}", (), "try train$"),
        ("train.learning_rte: 1", (), r"try train\.learning_rate"),
        ("lerning_rate: 1", (), r"try train\.learning_rate"),
        ("Seed: 1", (), "try seed"),
    ],
)
def test_what_is_ambiguous_is_refused(tmp_path, text, settings, words):
    with pytest.raises(InputError, match=words) as caught:
        from_yaml(tmp_path, text, *settings)
    assert "\n" not in str(caught.value)


def test_layers_may_repeat_each_other(tmp_path):
    assert from_yaml(tmp_path, "seed: 1\ntrain: {steps: 1, clip: 2}\n", "seed=2", "seed=2", "train.steps=null") == {
        "seed": 2,
        "train": {"clip": 2},
    }
    shared = "train: {<<: {steps: 3}, minutes: 2}"
    assert from_yaml(tmp_path, shared) == {"train": {"steps": 3, "minutes": 2}}


@pytest.mark.parametrize(
    "setting", [{"width": 10**9}, {"layers": 10**9}, {"depth": 10**9}, {"train": {"batch_size": 10**9}}]
)
@pytest.mark.parametrize("config", [fk.DensityConfig, fk.InvertConfig, fk.ClassifyConfig])
def test_a_size_that_no_machine_has_room_for_is_refused(config, setting):
    with pytest.raises(InputError, match="less than or equal"):
        asked(config, None, setting, None)
