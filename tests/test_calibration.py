"""P-values keep their promise: the hold-out of every job, and what a run says where nothing can be flagged."""

import importlib

import jax
import numpy as np
import pytest

import flowknife as fk
from flowknife._split import Sizes, fewest_calibration_rows, split, split_sizes
from flowknife.diagnostics import Flagging, conformal_p_values, misspecification
from flowknife.errors import CalibrationWarning, InputError
from tests.command import call

# -- the law of the split, without any network ------------------------------------------------------------------------


def _squared_distances(train, rows):
    mean, covariance = train.mean(axis=0), np.cov(train.T) + 1e-3 * np.eye(train.shape[1])
    difference = rows - mean
    return np.einsum("ni,ij,nj->n", difference, np.linalg.inv(covariance), difference)


@pytest.mark.parametrize(("rows", "alpha"), [(60, 0.05), (300, 0.05), (3000, 0.05), (300, 0.1)])
def test_of_new_rows_a_share_alpha_is_flagged_and_no_more(rows, alpha):
    generator, sizes = np.random.default_rng(rows), split_sizes(rows, None, alpha)
    share = []
    for seed in range(150 if rows < 1000 else 40):
        x, new = generator.standard_t(5, size=(rows, 6)), generator.standard_t(5, size=(100, 6))
        train, stopping, calibration = (x[part] for part in split(rows, sizes, jax.random.key(seed)))
        # early stopping: of fits to several parts of the training rows, the one that suits the stopping rows best
        fits = [train[: len(train) // parts] for parts in (1, 2, 3)]
        best = min(fits, key=lambda some: _squared_distances(some, stopping).mean())
        p = conformal_p_values(_squared_distances(best, new), _squared_distances(best, calibration))
        share.append(np.mean(p < alpha))
    error = np.std(share) / len(share) ** 0.5
    assert alpha * 0.94 - 3 * error < np.mean(share) < alpha + 3 * error


def test_rows_that_trained_calibrate_nothing():
    """The law can fail: what it fails for is what a run without held-out rows did."""
    generator = np.random.default_rng(0)
    x, new = generator.normal(size=(60, 20)), generator.normal(size=(1000, 20))
    assert np.mean(conformal_p_values(_squared_distances(x, new), _squared_distances(x, x)) < 0.05) > 0.5


@pytest.mark.parametrize("dim", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_of_observations_of_the_simulator_no_more_than_a_share_alpha_is_flagged(dim):
    generator, share = np.random.default_rng(dim), []
    for _ in range(30):
        reference, calibration, new = (generator.standard_t(4, size=(n, dim)) for n in (40, 20, 100))
        share.append(np.mean(misspecification(reference, new, calibration=calibration).p_values < 0.05))
    # the place and the width of the distances are fitted too: with 20 pairs that is on the safe side
    assert 0.015 < np.mean(share) < 0.05 + 2 * np.std(share) / 30**0.5


@pytest.mark.parametrize("alpha", [0.3, 0.1, 0.07, 0.05, 0.03, 0.01, 1 / 3])
def test_fewest_calibration_rows_can_flag_and_one_fewer_cannot(alpha):
    needed = fewest_calibration_rows(alpha)
    assert 1 / (needed + 1) < alpha <= 1 / needed
    assert conformal_p_values(np.array([np.inf]), np.zeros(needed))[0] < alpha
    assert Flagging(needed, alpha).note == "" and f"takes {needed};" in Flagging(needed - 1, alpha).note


@pytest.mark.parametrize("rows", [2, 3, 5, 8, 20, 59, 60, 150, 299, 1000, 10_000, 10**6])
@pytest.mark.parametrize("share", [None, 0, 0.01, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_sizes_leave_rows_for_training(rows, share, alpha):
    stopping, calibration = sizes = split_sizes(rows, share, alpha)
    held = sum(sizes)
    assert min(sizes) >= 0 and held < rows and calibration != 1
    if share == 0:
        assert sizes == (0, 0)
    elif share is None:
        assert stopping >= 1 and held <= max(0.44 * rows, 3)
        assert calibration >= fewest_calibration_rows(alpha) or rows < 3 * fewest_calibration_rows(alpha)
        assert rows < 1000 or held <= min(0.2 * rows, 10_000)
    elif rows >= 20:
        assert held == max(round(share * rows), 3) or held == rows - 1


def test_every_row_is_in_one_part_and_every_group_is_trained_on(key):
    groups = np.array([0] * 50 + [1] * 2 + [2])
    parts = split(53, Sizes(25, 25), key, groups=groups)
    assert sorted(np.concatenate(parts)) == list(range(53)) and [len(part) for part in parts] == [3, 25, 25]
    assert set(groups[parts.train]) == {0, 1, 2}


# -- every job --------------------------------------------------------------------------------------------------------

SMALL = {"key": 0, "show_progress": False, "width": 8}
STEPS = {"steps": 2, "batch_size": 16}
AFFINE = {"layers": 1, "depth": 1, "scalar": "affine", **SMALL}


def _density(n, **train):
    x = np.random.default_rng(0).normal(size=(n, 3))
    return fk.density(x, **AFFINE, train={**STEPS, **train})


def _classify(n, **train):
    x = np.random.default_rng(0).normal(size=(n, 3))
    return fk.classify(x, np.arange(n) % 2, **AFFINE, train={**STEPS, **train})


def _invert(n, **train):
    x = np.random.default_rng(0).normal(size=(n, 3))
    settings = {"layers": 1, "features": 0, "train": {**STEPS, "weight_decay": 0.0, **train}}
    return fk.invert(pairs=(x, x + 0.1 * x[::-1]), prior=fk.Normal([0, 0, 0], [1, 1, 1]), **SMALL, **settings)


def _images(n, **train):
    pixels = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
    return fk.images(pixels, dequantisation="uniform", levels=1, **SMALL, train={**STEPS, **train})


# sizes of which as many rows, 43, are trained on: some programs are compiled once for all
ENOUGH, UNHELD, FEW = 70, 43, 58
JOBS = {"density": _density, "classify": _classify, "invert": _invert, "images": _images}
ENGINES = {
    "density": "apps.density._fit",
    "classify": "apps.classify._training",
    "invert": "apps.invert._training",
    "images": "stages",
}
DATA = {"density": "x", "classify": "x", "invert": "x", "images": "image"}


def _jobs(*fast):
    return [job if job in fast else pytest.param(job, marks=pytest.mark.slow) for job in JOBS]


def _held_out(result):
    return result.held_out["x"] if result.application == "invert" else result.held_out


def _new(result, n=3):
    if result.application == "images":
        return np.zeros((n, 8, 8, 1), np.uint8)
    return np.full((n, 3), -1e7)


def _rows(arrays, name):
    array = arrays[name] if isinstance(arrays, dict) else arrays
    return {np.asarray(row).tobytes() for row in np.asarray(array)}


@pytest.fixture(scope="module", params=_jobs("density", "classify", "invert"))
def seventy(request):
    """Every job on 70 rows, with what its training was given."""
    job, given = request.param, []
    engine = importlib.import_module(f"flowknife.{ENGINES[job]}")
    train = engine.fit

    def recorded(model, data, *args, **options):
        given.append((_rows(data, DATA[job]), _rows(options["held_out"], DATA[job])))
        return train(model, data, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "fit", recorded)
        return JOBS[job](ENOUGH), given


def test_calibration_rows_had_no_part_in_training(seventy):
    result, given = seventy
    calibration = {np.asarray(row).tobytes() for row in _held_out(result)}
    assert len(calibration) == result.flagging.rows == 20 and given
    for trained, stopping in given:
        assert trained and stopping
        assert not calibration & trained and not calibration & stopping and not trained & stopping
        assert len(calibration | trained | stopping) == 70


def test_what_is_far_from_seventy_rows_is_flagged(seventy):
    result, _ = seventy
    scores = result.score(_new(result))
    assert scores["p_value"].tolist() == [1 / 21] * 3 and scores["flag"].all()
    assert not any(name.startswith("training_") for name in result.metrics)
    assert not result.flagging.note


@pytest.fixture(scope="module", params=_jobs("density"))
def unheld(request):
    """Every job without held-out rows."""
    with pytest.warns(CalibrationWarning, match="no p-values"):
        return JOBS[request.param](UNHELD, validation=0)


def test_without_held_out_rows_there_are_no_p_values(unheld, tmp_path):
    unheld.save(tmp_path / "run")
    for result in (unheld, fk.load(tmp_path / "run")):
        with pytest.warns(CalibrationWarning, match=r"no p-values.* try train\.validation=0\.15"):
            scores = result.score(_new(result))
        assert not {"p_value", "flag", "q_value", "discovery", "radius_p"} & set(scores) and len(scores) > 1
        assert result.metrics and all(name.startswith("training_") for name in result.metrics)
        assert not any("calibration" in name for name in result.metrics)
        with pytest.raises(InputError, match="without held-out"):
            result.check()
        assert "no p-values" in result.flagging.note


def test_the_shell_says_so_where_nothing_was_held_out(unheld, tmp_path):
    unheld.save(tmp_path / "run")
    np.save(tmp_path / "new.npy", _new(unheld))
    result = call("score", tmp_path / "run", tmp_path / "new.npy", "--out", tmp_path / "scores.csv")
    assert "note: there are no p-values" in result.stderr and "flagged" not in result.stdout
    assert "p_value" not in (tmp_path / "scores.csv").read_text()
    result = call("check", tmp_path / "run", status=1)
    assert "without held-out" in result.stderr
    assert "training" in (page := unheld.report(tmp_path / "run").read_text()) and "here are no p-values" in page
    assert ", held out" not in page and "Held-out" not in page


@pytest.mark.parametrize("job", _jobs("density"))
def test_with_too_few_calibration_rows_a_line_says_what_the_smallest_is(job, tmp_path):
    smallest = r"no p-value is below 0\.1 with 9 calibration \w+, .* alpha=0\.05, which takes 20; try more"
    with pytest.warns(CalibrationWarning, match=smallest):
        result = JOBS[job](FEW)
    with pytest.warns(CalibrationWarning, match=smallest):
        scores = result.score(_new(result))
    assert scores["p_value"].tolist() == [0.1] * 3 and not scores["flag"].any()
    (failed,) = (check for check in result.check() if "missing for a p-value" in check.name)
    assert not failed.passed and failed.value == 11
    result.save(tmp_path / "run")
    np.save(tmp_path / "new.npy", _new(result))
    told = call("score", tmp_path / "run", tmp_path / "new.npy", "--out", tmp_path / "scores.csv")
    assert "note: no p-value is below 0.1 " in told.stderr
    told = call("check", tmp_path / "run", status=1)
    assert "no p-value is below 0.1 " in told.stdout
    if job == "density":
        assert "No p-value is below 0.1 " in result.report(tmp_path / "run").read_text()


def test_rows_of_ones_own_may_calibrate():
    generator = np.random.default_rng(0)
    x, own, new = generator.normal(size=(40, 2)), generator.normal(size=(25, 2)), generator.normal(size=(5, 2))
    flow = fk.density(x, **AFFINE, train={**STEPS, "validation": 0}, calibration=own, alpha=0.1)
    np.testing.assert_array_equal(
        flow.score(new)["p_value"], conformal_p_values(-flow.log_prob(new), -flow.log_prob(own))
    )
    with pytest.raises(InputError, match="columns"):
        fk.density(x, **SMALL, calibration=own[:, :1])
    with pytest.raises(InputError, match="missing or infinite"):
        fk.density(x, **SMALL, calibration=np.where(own > 1, np.nan, own))


@pytest.mark.slow
def test_a_detector_calibrates_whatever_its_settings_hold_out():
    pytest.importorskip("sklearn")
    x = np.random.default_rng(0).normal(size=(120, 2))
    settings = {"layers": 1, "width": 8, **STEPS, "validation": 0}
    detector = fk.AnomalyDetector(contamination=0.1, **settings, random_state=0).fit(x)
    assert len(detector.calibration_scores_) == detector.flow_.flagging.rows == 30
    np.testing.assert_array_equal(detector.p_values(x), detector.flow_.score(x)["p_value"])
