"""Checkpoints: a fit that was stopped at any moment goes on, and ends as if it had never been."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowknife as fk
from flowknife import train
from flowknife._files import CHECKPOINTS
from flowknife.apps.images._training import train_images
from flowknife.architectures import wavelet
from flowknife.bijections import Elementwise, ShiftScale
from flowknife.data import Augmentation, digits, save_table, simulate, simulations
from flowknife.errors import InputError, StorageError
from flowknife.inn import INN, Block
from flowknife.laws import Pixels
from flowknife.multiscale import image_model
from flowknife.train import Checkpoints
from tests.command import call, refused

X = np.random.default_rng(0).normal(size=(120, 2))
SMALL = {"layers": 1, "width": 4, "depth": 1, "show_progress": False}
TINY = {**SMALL, "scalar": "affine"}
STEPS = {"steps": 24, "batch_size": 16, "evaluate_every": 10, "checkpoint_every": 3, "patience": 0}
SHORT = {"steps": 4, "batch_size": 16, "evaluate_every": 2, "checkpoint_every": 1}


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def kill(monkeypatch):
    """End the fit inside the progress report of a part, after so many reports."""

    def after(reports, label=""):
        @contextmanager
        def progress(name, show=True):
            seen = 0

            def report(fraction, text=""):
                nonlocal seen
                seen += label in name
                if seen == reports:
                    monkeypatch.undo()
                    raise Killed

            yield report

        monkeypatch.setattr(train._fit, "progress", progress)
        monkeypatch.setattr(train._loop, "_SECONDS_PER_CALL", 0.0)  # one step for each report

    return after


def same(one, other):
    """Whether two results are equal to the last bit, but for the time they took."""
    timeless = [{name: column for name, column in r.history.items() if name != "seconds"} for r in (one, other)]
    return eqx.tree_equal(one.model, other.model) and timeless[0] == timeless[1]


def states(folder):
    return sorted(path.name for path in folder.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def whole():
    return fk.density(X, **TINY, train=STEPS)


def flow(x=X, **options):
    return fk.density(x, **TINY, train=STEPS, **options)


# -- the same result --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reports", [5, 11, 20])  # within a round, at its end, in the next one
def test_a_density_goes_on_where_it_stood(tmp_path, kill, whole, reports):
    kill(reports)
    with pytest.raises(Killed):
        flow(checkpoints=tmp_path / "kept")
    assert 1 <= len(states(tmp_path)) <= 2
    assert same(flow(checkpoints=tmp_path / "kept", resume=True), whole)
    assert states(tmp_path) == ["end.safetensors"]


def test_a_finished_part_is_not_trained_again(tmp_path, whole, monkeypatch):
    kept = {"checkpoints": tmp_path / "kept", "resume": True}  # nothing is there: from the beginning
    first = flow(**kept)
    monkeypatch.setattr(train._loop, "advance", None)
    again = flow(**kept)
    assert same(first, whole) and same(again, whole) and again.history == first.history


@pytest.mark.slow
def test_the_second_level_of_images_goes_on(tmp_path, kill):
    pixels = digits()[0][:60]
    model = image_model((8, 8, 1), Pixels(5), wavelet((8, 8, 1), levels=1, features=8, width=8, key=0))
    fixed = {"augmentation": Augmentation(), "flip": False, "parallel": 1, "key": jax.random.key(0)}

    def levels(resume):
        kept = Checkpoints(tmp_path / "kept" if resume is not None else None, {}, resume=bool(resume))
        training = train.Training(**SHORT)
        return train_images(model, {"image": pixels}, None, training, **fixed, show_progress=False, checkpoints=kept)

    expected = levels(resume=None)
    kill(3, "level 1")
    with pytest.raises(Killed):
        levels(resume=False)
    assert states(tmp_path / "kept" / "level-0") == ["end.safetensors"]
    assert len(states(tmp_path / "kept" / "level-1")) == 2
    found = levels(resume=True)
    assert same(found, expected) and found.record.steps == expected.record.steps


def test_an_inversion_goes_on_with_its_candidate_and_its_simulations(tmp_path, kill):
    calls = []

    def simulator(theta):
        calls.append(1)
        if theta[0] > 1.8:
            raise ArithmeticError("too large")
        return theta + theta[::-1] ** 2

    prior = fk.Uniform(low=[-2, -2], high=[2, 2])
    # a budget of minutes leaves the steps to the fit, and so three candidates; patience ends each
    settings = {"minutes": 60, "batch_size": 32, "evaluate_every": 1, "patience": 2, "checkpoint_every": 1}
    settings |= {"learning_rate": 1.0, "warmup": 0, "schedule": "constant"}
    options = {"num_simulations": 150, **SMALL, "train": settings}
    expected = fk.invert(simulator, prior, **options)
    kill(1, "posterior, 2")
    with pytest.raises(Killed):
        fk.invert(simulator, prior, **options, checkpoints=tmp_path / "kept")
    calls.clear()
    found = fk.invert(simulator, prior, **options, checkpoints=tmp_path / "kept", resume=True)
    assert not calls
    assert same(found, expected)
    assert (found.record.data.left_out, found.record.data.reason) == (
        expected.record.data.left_out,
        "ArithmeticError: too large",
    )
    assert {path.name for path in (tmp_path / "kept").iterdir() if path.is_dir()} == {
        "simulations",
        "candidate-1",
        "candidate-2",
        "candidate-3",
    }


def affine():
    return INN([Block("x", 2)], [Block("z", 2)], Elementwise(ShiftScale(), 2))


def fit(data, **options):
    return fk.fit(affine(), data, **({"show_progress": False, "key": 0} | STEPS | options))


def test_a_stream_skips_the_batches_that_were_used(tmp_path, kill):
    batches = [X[start : start + 10].astype(np.float32) for start in range(0, 120, 10)]
    expected = fit(batches)
    kill(14)
    with pytest.raises(Killed):
        fit(batches, checkpoints=tmp_path / "kept")
    assert same(fit(batches, checkpoints=tmp_path / "kept", resume=True), expected)


def test_a_key_of_chance_is_kept(tmp_path, kill):
    kept, x = {"checkpoints": tmp_path / "kept", "key": None}, X.astype(np.float32)
    kill(9)
    with pytest.raises(Killed):
        fit(x, **kept)
    one, other = (fit(x, **kept, resume=True) for _ in range(2))
    assert same(one, other) and one.history == other.history
    with pytest.raises(StorageError, match="key="):
        fit(x, checkpoints=tmp_path / "kept", key=3, resume=True)


def test_the_time_that_was_used_counts(tmp_path, kill, monkeypatch):
    save = train.Part.save
    monkeypatch.setattr(train.Part, "save", lambda part, s, tree, plain: save(part, s, tree, plain | {"seconds": 61}))
    x, options = X.astype(np.float32), {"steps": None, "minutes": 1, "checkpoints": tmp_path / "kept"}
    kill(8)
    with pytest.raises(Killed):
        fit(x, **options)
    result = fit(x, **options, resume=True)
    assert (result.steps, result.stopped) == (6, "budget") and result.seconds > 61


def test_the_clock_of_all_parts_goes_on(tmp_path):
    kept = Checkpoints(tmp_path / "kept", {}, resume=True, began=time.monotonic() - 100, show=False)
    kept.part("a").finish(jnp.zeros(2), {})
    again = Checkpoints(tmp_path / "kept", {}, resume=True, show=False)
    assert 100 <= time.monotonic() - again.began < 160
    assert again.part("a").finished(jnp.ones(2))[0].tolist() == [0, 0]


# -- simulations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("by_key", "pooled"), [(False, False), (True, False), (True, True)])
def test_finished_simulations_are_not_made_again(tmp_path, monkeypatch, by_key, pooled):
    monkeypatch.setattr(simulations, "_KEEP_EVERY", 0.0)
    theta = np.random.default_rng(0).normal(size=(300, 2))
    rows, stop = [], [240]

    def observed(theta):
        rows.append(tuple(np.ravel(theta)))
        if len(rows) == stop[0]:
            raise KeyboardInterrupt
        if theta[0] < -1.5:
            raise ValueError("too small")
        return np.array([theta[0] * theta[1], np.inf if theta[1] > 2 else theta.sum()])

    if by_key:

        def simulator(theta, key):
            return observed(theta) + np.asarray(jax.random.normal(key, (2,)))

    else:
        simulator = observed

    def run():
        kept = Checkpoints(tmp_path / "kept", {}, resume=True).part("rows")
        # one thread: of two, one may fall behind by any number of chunks, and what comes after a gap is not kept
        with ThreadPoolExecutor(1) if pooled else nullcontext() as executor:
            return simulate(simulator, theta, key=1, executor=executor, kept=kept)

    with pytest.raises(KeyboardInterrupt):
        run()
    stop[0] = 0
    seen = len(set(rows))
    rows.clear()
    found = run()
    # the chunk of a pool that was interrupted is lost
    assert len(set(rows)) <= 300 - (230 if pooled else seen) + 2
    expected = simulate(simulator, theta, key=1)
    for name in ("theta", "y"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert (found.failed, found.reason, found.exact) == (expected.failed, expected.reason, expected.exact)
    assert found.failed and found.y.dtype == np.float64
    rows.clear()
    run()
    assert not rows


# -- what is refused, and what is damaged -----------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path, kill):
    """A folder of checkpoints of `flow()` under way."""
    kill(10)
    with pytest.raises(Killed):
        flow(checkpoints=tmp_path / "kept")
    return tmp_path / "kept"


@pytest.mark.parametrize(
    ("change", "words"),
    [({"x": X + 1}, "data="), ({"seed": 4}, "seed=0 then, 4 now"), ({"alpha": 0.1}, "alpha=0.05 then, 0.1 now")],
)
def test_another_fit_is_refused(stopped, change, words):
    before = {path: path.read_bytes() for path in stopped.rglob("*.*")}
    with pytest.raises(StorageError) as caught:
        flow(**change, checkpoints=stopped, resume=True)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in stopped.rglob("*.*")} == before


def test_checkpoints_are_not_begun_anew_by_accident(stopped, tmp_path):
    with pytest.raises(StorageError, match="resume=True"):
        flow(checkpoints=stopped)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    for resume in (False, True):
        with pytest.raises(StorageError, match="other files"):
            flow(checkpoints=tmp_path / "other", resume=resume)
    with pytest.raises(InputError, match="checkpoints="):
        flow(resume=True)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def said_otherwise(path):
    """Not in the arrays, but in what is said beside them."""
    content = path.read_bytes().replace(rb"\"stale\": 0", rb"\"stale\": 7")
    assert content != path.read_bytes()
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncated, flipped, said_otherwise])
@pytest.mark.parametrize("count", [1, 2])  # the last one, or both: then the part begins anew
def test_a_damaged_checkpoint_is_not_used(stopped, whole, capsys, damage, count):
    for place in sorted((stopped / "training").iterdir())[-count:]:
        damage(place)
    assert same(fk.density(X, **TINY | {"show_progress": True}, train=STEPS, checkpoints=stopped, resume=True), whole)
    assert capsys.readouterr().err.count("is damaged and is not used") == count


def test_a_full_disk_ends_no_training(tmp_path, whole, monkeypatch, capsys):
    def full(*_):
        raise StorageError("got no space")

    monkeypatch.setattr(train._checkpoints, "save_tree", full)
    found = fk.density(X, **TINY | {"show_progress": True}, train=STEPS, checkpoints=tmp_path / "kept")
    assert same(found, whole) and capsys.readouterr().err.count("no checkpoint: got no space") == 1


# -- numbers that are not finite --------------------------------------------------------------------------------------


def failing(steps, x):
    """The negative log-likelihood, which is NaN in the steps whose batch has these first numbers."""

    def objective(model, batch, key):
        bad = jnp.isin(batch["x"][0, 0], x[list(steps), 0])
        return jnp.where(bad, jnp.nan, 1.0) * train._fit.nll(model, batch, key)

    return objective


def in_turn(count):
    x = np.random.default_rng(1).normal(size=(count, 8, 2)).astype(np.float32)
    return x, list(x)


def test_a_step_that_is_not_finite_is_left_out_and_counted():
    x, batches = in_turn(12)
    options = {"steps": 12, "evaluate_every": 4, "held_out": x.reshape(-1, 2), "warmup": 0, "learning_rate": 0.1}
    result = fit(batches, **options, objective=failing([2, 6, 7], x[:, 0]), held_out_objective=train._fit.nll)
    assert (result.stopped, result.steps, result.dropped) == ("budget", 12, 3)
    assert "3 steps were left out" in result.message and "step 2" in result.message
    assert result.loss == min(result.history["validation"]) and np.all(np.isfinite(result.history["train"]))


def test_training_goes_back_at_half_the_rate_and_then_ends(monkeypatch):
    x, batches = in_turn(30)
    rates = []
    advance = train._loop.advance

    def noted(rules, numbers, *rest):
        rates.append(float(numbers.learning_rate))
        return advance(rules, numbers, *rest)

    monkeypatch.setattr(train._loop, "advance", noted)
    options = {"steps": 30, "evaluate_every": 4, "held_out": x.reshape(-1, 2), "warmup": 0, "learning_rate": 0.1}
    bad = failing(range(5, 30), x[:, 0])
    result = fit(batches, **options, objective=bad, held_out_objective=train._fit.nll)
    assert (result.stopped, result.steps, result.dropped) == ("non-finite", 5 + 11, 11)
    assert "step 16" in result.message and result.step == 4
    assert list(dict.fromkeys(rates)) == pytest.approx([0.1, 0.05, 0.025, 0.0125])


# -- the shell --------------------------------------------------------------------------------------------------------

OPTIONS = ["--set=layers=1", "--set=width=4", "--set=depth=1", "--set=scalar=affine"]
OPTIONS += [f"--set=train.{k}={v}" for k, v in STEPS.items()]


@pytest.fixture
def table(tmp_path):
    save_table(tmp_path / "points.csv", X, ("a", "b"))
    return tmp_path / "points.csv"


def test_the_shell_goes_on_with_resume(tmp_path, table, kill):
    run, command = tmp_path / "run", ["fit", "density", table, "--out", tmp_path / "run", *OPTIONS]
    kill(12)
    with pytest.raises(Killed):
        call(*command)
    assert [path.name for path in run.iterdir()] == [CHECKPOINTS]
    line = refused(*command, words=["--resume", "--overwrite"])
    assert "unfinished" in line
    refused(*command, "--resume", "-s", "seed=3", words="seed=0 then, 3 now")
    refused(*command, "--overwrite", "-s", "train.step=3", words="train.step")
    assert len(states(run)) == 2  # wrong settings lost nothing
    call(*command, "--resume")
    assert not (run / CHECKPOINTS).exists() and not list(run.glob(".*"))
    assert "nothing to resume" in call(*command, "--resume").stdout
    other = call("fit", "density", table, "--out", tmp_path / "other", *OPTIONS, "--resume")
    assert "starting from the beginning" in other.stderr
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "other" / "model.safetensors").read_bytes()


def test_overwrite_begins_anew(tmp_path, table, kill):
    command = ["fit", "density", table, "--out", tmp_path / "run", *OPTIONS]
    kill(12)
    with pytest.raises(Killed):
        call(*command)
    call(*command, "--overwrite", "-s", "seed=5")
    assert fk.load(tmp_path / "run").config.seed == 5 and not (tmp_path / "run" / CHECKPOINTS).exists()


def test_an_interruption_names_the_command_that_goes_on(tmp_path, table, monkeypatch):
    """Twice: the partial run is replaced by one that is further, and that by the whole one."""
    run = tmp_path / "run"
    command = ["fit", "density", table, "--out", run, *OPTIONS]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(train._loop, "_SECONDS_PER_CALL", 0.0)

            @contextmanager
            def progress(label, show=True):
                yield lambda fraction, text="": "loss" in text and signal.raise_signal(signal.SIGINT)

            patch.setattr(train._fit, "progress", progress)
            first = call(*command, status=130).stderr
            second = call(*command, "--resume", status=130).stderr
    finally:
        signal.signal(signal.SIGINT, before)
    for line, step in ((first, 1), (second, 2)):
        assert f"partial run: training was interrupted at step {step}; to resume: " in line
        assert line.count("--resume") == 1 and line.count("interrupted: ") == 1 and line.rstrip().endswith("--resume")
    assert fk.load(run).record.training.steps == 2
    call(*command, "--resume")
    flow = fk.load(run)
    assert flow.record.training.steps == STEPS["steps"] and not flow.record.training.partial
    assert list(tmp_path.glob("run*")) == [run]
