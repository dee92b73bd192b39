"""The doors for scikit-learn: its own checks, and that rates and distributions are what they promise."""

import jax
import numpy as np
import pytest

import flowknife as fk
from flowknife.errors import InputError

sklearn = pytest.importorskip("sklearn")
checks = pytest.importorskip("sklearn.utils.estimator_checks")

QUICK = {"layers": 1, "width": 8, "depth": 1, "train": {"steps": 3, "batch_size": 16}}
SMALL = {"layers": 4, "width": 32, "train": {"steps": 300, "batch_size": 256}}


def estimators():
    return [
        # half of the rows of the smallest tables there are calibrate a rate of 0.4
        fk.AnomalyDetector(contamination=0.4, calibration=0.5, settings=QUICK, random_state=0),
        fk.FlowDensity(settings=QUICK, random_state=0),
    ]


APPLY = (
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_estimators_unfitted",
    "check_estimators_nan_inf",
    "check_complex_data",
    "check_n_features_in",
    "check_estimators_empty_data_messages",
)


@pytest.mark.parametrize("estimator", estimators(), ids=lambda estimator: type(estimator).__name__)
@pytest.mark.parametrize("name", APPLY)
def test_keeps_the_rules_of_scikit_learn(estimator, name):
    getattr(checks, name)(type(estimator).__name__, estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "estimator",
    [
        *estimators(),
        fk.FlowClassifier(settings=QUICK, random_state=0),
        fk.FlowRegressor(settings={**QUICK, "features": 0}, draws=20, random_state=0),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_passes_all_checks_of_scikit_learn(estimator):
    expected = {
        "check_do_not_raise_errors_in_init_or_set_params": "types are checked at run time, in these tests alone",
        "check_outliers_train": "contamination is a rate among new normal rows, not a share of the training rows",
        "check_outliers_fit_predict": "the same",
        "check_classifiers_train": "asks for an accuracy, and nothing was trained",
        "check_classifiers_classes": "the same",
        "check_classifiers_one_label": "one class alone is refused",
        "check_regressors_train": "asks for a score, and nothing was trained",
        "check_methods_subset_invariance": "means are of draws, which differ from row to row",
        "check_methods_sample_order_invariance": "the same",
    }

    def forget(**result):
        """Every check compiles anew, and a process has no room for all of it."""
        jax.clear_caches()

    failed = checks.check_estimator(estimator, expected_failed_checks=expected, on_fail=None, callback=forget)
    assert not [result["check_name"] for result in failed if result["status"] == "failed"]


@pytest.fixture(scope="module")
def moons():
    return fk.data.TOYS["moons"].sample(1200, key=0).astype(np.float64) * [1.0, 50.0] + [1e6, 0.0]


@pytest.fixture(scope="module")
def detector(moons):
    return fk.AnomalyDetector(contamination=0.02, settings=SMALL, random_state=0).fit(moons)


def test_of_normal_rows_as_many_are_flagged_as_was_asked_for(detector):
    new = fk.data.TOYS["moons"].sample(5000, key=1).astype(np.float64) * [1.0, 50.0] + [1e6, 0.0]
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
        fk.AnomalyDetector(settings=QUICK).fit(moons[:200])
    with pytest.raises(InputError, match="contamination"):
        fk.AnomalyDetector(contamination=0.7).fit(moons)
    with pytest.raises(InputError, match="calibration"):
        fk.AnomalyDetector(calibration=1.0).fit(moons)


def test_a_detector_goes_into_a_pipeline_and_is_cloned(moons):
    from sklearn.base import clone
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    detector = fk.AnomalyDetector(contamination=0.1, settings=QUICK, random_state=3)
    first, second = (make_pipeline(StandardScaler(), clone(detector)).fit(moons[:200]) for _ in range(2))
    np.testing.assert_array_equal(first.decision_function(moons), second.decision_function(moons))
    assert first[-1].get_params()["settings"] == QUICK


@pytest.mark.slow
def test_a_density_scores_and_samples(moons):
    from sklearn.model_selection import cross_val_score

    flow = fk.FlowDensity(settings=QUICK, random_state=0).fit(moons)
    assert flow.score(moons) == pytest.approx(flow.score_samples(moons).mean())
    drawn = flow.sample(500)
    np.testing.assert_allclose(drawn.mean(axis=0), moons.mean(axis=0), atol=0.5 * moons.std(axis=0).max())
    np.testing.assert_array_equal(drawn, flow.sample(500))
    assert np.isfinite(cross_val_score(fk.FlowDensity(settings=QUICK, random_state=0), moons[:300], cv=2)).all()


@pytest.mark.slow
def test_a_classifier_keeps_the_order_of_the_classes():
    generator = np.random.default_rng(0)
    # the labels come in an order that is not that of the alphabet
    labels = np.array(["pear", "apple", "fig"])[generator.integers(3, size=600)]
    x = generator.normal(size=(600, 2)) + 5 * np.stack([labels == "apple", labels == "fig"], axis=1)
    train = {"steps": 60, "batch_size": 64}
    model = fk.FlowClassifier(settings={**QUICK, "train": train}, random_state=0).fit(x, labels)
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
    settings = {"layers": 3, "width": 32, "features": 0, "train": {"steps": 400, "weight_decay": 0.0}}
    model = fk.FlowRegressor(draws=300, settings=settings, random_state=0).fit(x, y)
    assert model.score(x, y) > 0.8
    low, middle, high = model.predict_quantiles([[-0.6], [0.6]]).T
    np.testing.assert_allclose(middle, [1e4 - 12, 1e4 + 12], atol=2.5)
    # the 90 % intervals are 3.29 standard deviations wide
    np.testing.assert_allclose(high - low, [3.29 * 1.0, 3.29 * 7.0], rtol=0.35)
    assert model.sample([[0.0]], 7).shape == (1, 7)
    both = fk.FlowRegressor(draws=5, settings={**QUICK, "features": 0}, random_state=0).fit(
        x, np.stack([y, -y], axis=1)
    )
    assert both.predict(x[:3]).shape == (3, 2)
