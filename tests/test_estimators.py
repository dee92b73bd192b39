"""The doors for scikit-learn: its own checks, and that rates and distributions are what they promise."""

import pickle
from dataclasses import fields

import jax
import jaxtyping
import numpy as np
import pytest

import flowknife as fk
from flowknife.errors import InputError

sklearn = pytest.importorskip("sklearn")
checks = pytest.importorskip("sklearn.utils.estimator_checks")
estimators = pytest.importorskip("flowknife.estimators")

SIZE = {"layers": 1, "width": 8, "depth": 1, "random_state": 0}
QUICK = {**SIZE, "steps": 3, "batch_size": 16}
AFFINE = {**QUICK, "scalar": "affine"}
SMALL = {"layers": 4, "width": 32, "steps": 300, "batch_size": 256, "random_state": 0}
LEARNING = {**SIZE, "steps": 60, "batch_size": 64, "learning_rate": 0.02, "warmup": 5, "average": 0.9}

DOORS = {
    # half of the rows of the smallest tables there are calibrate a rate of 0.4
    "AnomalyDetector": fk.AnomalyDetector(contamination=0.4, calibration=0.5, **QUICK),
    "AnomalyDetector of training rows": fk.AnomalyDetector(contamination=0.4, novelty=False, **QUICK),
    "FlowDensity": fk.FlowDensity(**QUICK),
    "FlowTransformer": fk.FlowTransformer(**QUICK),
    "FlowClassifier": fk.FlowClassifier(**LEARNING),
    "FlowRegressor": fk.FlowRegressor(features=0, draws=20, **LEARNING),
}

APPLY = (
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimators_unfitted",
    "check_complex_data",
    "check_estimators_empty_data_messages",
)


@pytest.fixture
def as_in_use():
    """Types are not checked at every call."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("as_in_use")
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", APPLY)
def test_keeps_the_rules_of_scikit_learn(door, name):
    getattr(checks, name)(door.split()[0], DOORS[door])


@pytest.mark.slow
@pytest.mark.usefixtures("as_in_use")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("door", DOORS)
def test_passes_all_checks_of_scikit_learn(door):
    def forget(**result):
        """Every check compiles anew, and a process has no room for all of it."""
        jax.clear_caches()

    failed = checks.check_estimator(DOORS[door], on_fail=None, callback=forget)
    assert not [result["check_name"] for result in failed if result["status"] not in ("passed", "skipped")]


def test_every_setting_is_an_argument():
    none = {"seed", "train", "checkpoint_every"}  # random_state; below; there are no checkpoints
    train = set(fk.Training.model_fields)
    elsewhere = {
        "AnomalyDetector": {"alpha"},  # its contamination
        "FlowDensity": set(),
        "FlowTransformer": {"alpha"},
        "FlowClassifier": {"classes", "image_size", "bits", "augment"},  # those that occur; images
        # rows of numbers, no prior
        "FlowRegressor": {"alpha", "num_simulations", "embedding", "observation", "emulate"},
    }
    configs = [fk.DensityConfig] * 3 + [fk.ClassifyConfig, fk.InvertConfig]
    for (name, without), config in zip(elsewhere.items(), configs, strict=True):
        arguments = {item.name for item in fields(getattr(fk, name))}
        assert (train | set(config.model_fields)) - none - without <= arguments, name
        assert arguments == set(getattr(fk, name)().get_params())


@pytest.fixture(scope="module")
def moons():
    return fk.data.TOYS["moons"].sample(1200, key=0).astype(np.float64) * [1.0, 50.0] + [1e6, 0.0]


@pytest.fixture(scope="module")
def detector(moons):
    return fk.AnomalyDetector(contamination=0.02, **SMALL).fit(moons)


def test_of_normal_rows_as_many_are_flagged_as_was_asked_for(detector):
    new = fk.data.TOYS["moons"].sample(1000, key=1).astype(np.float64) * [1.0, 50.0] + [1e6, 0.0]
    # 300 calibration rows set the threshold: its own standard deviation is 0.008
    assert abs(np.mean(detector.predict(new) == -1) - 0.02) < 0.03
    between = np.array([[1e6 + 0.5, 150.0], [1e6 - 5.0, 0.0]])
    assert (detector.predict(between) == -1).all()


def test_decision_p_value_and_prediction_agree(detector, moons):
    lowest = detector.calibration_scores_[:8]
    shift = moons[:200] + np.linspace(0, 3, 200)[:, None]
    flagged = detector.predict(shift) == -1
    assert 0 < flagged.sum() < 200
    np.testing.assert_array_equal(flagged, detector.p_values(shift) <= 0.02)
    np.testing.assert_array_equal(flagged, detector.decision_function(shift) < 0)
    np.testing.assert_allclose(detector.decision_function(shift), detector.score_samples(shift) - detector.offset_)
    # 300 rows at a rate of 0.02: (1 + k) / 301 <= 0.02 for k up to 5, so that the sixth smallest is the first not below
    assert detector.offset_ == lowest[5]


def test_too_few_rows_for_a_rate_are_refused(moons):
    with pytest.raises(InputError, match=r"at least 99 for a rate of 0\.01"):
        fk.AnomalyDetector(**QUICK).fit(moons[:200])
    with pytest.raises(InputError, match="contamination"):
        fk.AnomalyDetector(contamination=0.7).fit(moons)
    with pytest.raises(InputError, match="calibration"):
        fk.AnomalyDetector(calibration=1.0).fit(moons)
    with pytest.raises(InputError, match="learning_rate"):
        fk.FlowDensity(learning_rate=-1).fit(moons)


def test_a_pipeline_with_a_clone_gives_the_same_again_also_from_a_pickle(moons):
    from sklearn.base import clone
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    detector = fk.AnomalyDetector(contamination=0.1, **AFFINE)
    first, second = (make_pipeline(StandardScaler(), clone(detector)).fit(moons[:200]) for _ in range(2))
    expected = first.decision_function(moons[:200])
    np.testing.assert_array_equal(expected, second.decision_function(moons[:200]))
    np.testing.assert_array_equal(expected, pickle.loads(pickle.dumps(first)).decision_function(moons[:200]))
    assert clone(detector).get_params() == detector.get_params()


def test_training_rows_are_flagged_where_novelty_is_false_and_by_the_convention_of_pyod(moons):
    rows = moons[:200]
    detector = fk.AnomalyDetector(contamination=0.05, novelty=False, **AFFINE)
    flagged = detector.fit_predict(rows) == -1
    assert flagged.sum() == 10
    with pytest.raises(AttributeError, match="p_values"):
        detector.p_values(rows)
    with pytest.raises(AttributeError, match="fit_predict"):
        fk.AnomalyDetector(**QUICK).fit_predict(rows)
    pyod = estimators.PyODDetector(contamination=0.05, **AFFINE)
    np.testing.assert_array_equal(pyod.fit_predict(rows), flagged)
    np.testing.assert_array_equal(pyod.decision_scores_, -detector.score_samples(rows))
    np.testing.assert_array_equal(pyod.labels_, pyod.decision_scores_ > pyod.threshold_)
    np.testing.assert_array_equal(pyod.predict(rows), pyod.decision_function(rows) > pyod.threshold_)


def test_latents_and_rows_are_frames_with_names(moons):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(moons[:200], columns=["a", "b"]).assign(c=3.0)
    model = fk.FlowTransformer(**AFFINE).set_output(transform="pandas").fit(frame)
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    z = model.transform(frame)
    assert z.columns.tolist() == model.get_feature_names_out().tolist() and z.shape == (200, 2)
    back = model.inverse_transform(z.to_numpy())
    np.testing.assert_allclose(back, frame, atol=2e-3)
    with pytest.raises(InputError, match="3 numbers per latent; expected 2"):
        model.inverse_transform(frame.to_numpy())


@pytest.mark.slow
def test_a_density_scores_samples_and_is_searched(moons):
    from sklearn.model_selection import GridSearchCV, cross_val_score

    flow = fk.FlowDensity(**QUICK).fit(moons)
    assert flow.score(moons) == pytest.approx(flow.score_samples(moons).mean())
    drawn = flow.sample(500)
    np.testing.assert_allclose(drawn.mean(axis=0), moons.mean(axis=0), atol=0.5 * moons.std(axis=0).max())
    np.testing.assert_array_equal(drawn, flow.sample(500))
    assert np.isfinite(cross_val_score(fk.FlowDensity(**QUICK), moons[:300], cv=2)).all()
    search = GridSearchCV(fk.FlowDensity(**QUICK), {"layers": [1, 2], "learning_rate": [1e-3]}, cv=2).fit(moons[:300])
    assert search.best_estimator_.flow_.config.layers == search.best_params_["layers"]


@pytest.mark.slow
def test_a_classifier_keeps_the_order_of_the_classes():
    generator = np.random.default_rng(0)
    # the labels come in an order that is not that of the alphabet
    labels = np.array(["pear", "apple", "fig"])[generator.integers(3, size=600)]
    x = generator.normal(size=(600, 2)) + 5 * np.stack([labels == "apple", labels == "fig"], axis=1)
    model = fk.FlowClassifier(**SIZE, steps=60, batch_size=64).fit(x, labels)
    assert model.classes_.tolist() == ["apple", "fig", "pear"]
    assert model.score(x, labels) > 0.97
    corners = model.predict_proba([[5.0, 0.0], [0.0, 5.0], [0.0, 0.0]])
    np.testing.assert_array_equal(corners.argmax(axis=1), [0, 1, 2])
    np.testing.assert_allclose(corners.sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.slow
def test_a_regressor_knows_how_uncertain_it_is():
    generator = np.random.default_rng(0)
    x = generator.uniform(-1, 1, size=(2000, 1))
    noise = 0.05 + 0.3 * (x[:, 0] > 0)
    y = 1e4 + 20 * x[:, 0] + 20 * noise * generator.normal(size=2000)
    settings = {"layers": 3, "width": 32, "features": 0, "steps": 400, "weight_decay": 0.0}
    model = fk.FlowRegressor(draws=300, **settings, random_state=0).fit(x, y)
    assert model.score(x, y) > 0.8
    low, middle, high = model.predict_quantile([[-0.6], [0.6]]).T
    np.testing.assert_allclose(middle, [1e4 - 12, 1e4 + 12], atol=2.5)
    # the 90 % intervals are 3.29 standard deviations wide
    np.testing.assert_allclose(high - low, [3.29 * 1.0, 3.29 * 7.0], rtol=0.35)
    # a prediction depends on its row alone, and does not change
    np.testing.assert_allclose(model.predict_quantile([[0.6]], 0.5), middle[1:], rtol=1e-6)
    assert model.sample([[0.0]], 7).shape == (1, 7)
    both = fk.FlowRegressor(draws=5, features=0, **QUICK).fit(x, np.stack([y, -y], axis=1))
    assert both.predict(x[:3]).shape == (3, 2) and both.predict_quantile(x[:3]).shape == (3, 3, 2)
