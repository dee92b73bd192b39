"""Interrupted fits: the best weights so far become a result, or a run, that says that it is partial."""

import itertools
import json
import re
import signal
import threading
from contextlib import contextmanager

import jax.numpy as jnp
import numpy as np
import pytest

import flowknife as fk
from flowknife import train
from flowknife._interrupts import finish
from flowknife._threads import in_threads, raise_if_interrupted
from flowknife.data import digits, save_table
from flowknife.errors import Interrupted, TrainingError
from flowknife.objectives import nll
from tests.command import call

X = np.random.default_rng(0).normal(size=(100, 3))
EVERY_STEP = {"evaluate_every": 1, "steps": 50, "patience": 0}  # no early stop
TINY = {"layers": 1, "width": 4, "depth": 1, "show_progress": False}
OPTIONS = ["layers=1", "width=4", "depth=1", "scalar=affine", "train.evaluate_every=1", "train.steps=50"]
OPTIONS = [word for setting in OPTIONS for word in ("-s", setting)]


@pytest.fixture(autouse=True)
def ctrl_c_interrupts():
    """A process in the background may have been started with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def press(monkeypatch):
    """Press Ctrl-C after so many reports of progress: two for each step, after it and after its evaluation."""

    def after(reports, number=signal.SIGINT):
        counter = itertools.count(1)

        @contextmanager
        def progress(label, show=True):
            def report(fraction, text=""):
                if next(counter) == reports:
                    signal.raise_signal(number)

            yield report

        monkeypatch.setattr(train._fit, "progress", progress)

    return after


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("interrupts") / "points.csv"
    save_table(path, X, ("a", "b", "c"))
    return path


def shift(start):
    """A model of one column whose only parameter is a shift."""
    affine = fk.bijections.Affine(jnp.zeros(1), jnp.ones(1))
    flow = fk.architectures.coupling_flow(1, layers=1, width=4, depth=1, scalar="affine", key=start)
    return fk.INN([fk.Block("x", 1)], [fk.Block("z", 1)], fk.bijections.Chain([affine, flow]))


@pytest.mark.parametrize("reports", [7, pytest.param(8, marks=pytest.mark.slow)])  # step 4 is not evaluated yet, and is
def test_fit_keeps_the_best_weights_of_an_interruption(press, reports):
    press(reports)
    with pytest.raises(Interrupted) as stop:
        fk.fit(shift(0), X[:, :1].astype(np.float32), fk.Training(**EVERY_STEP), key=0)
    result = stop.value.result
    assert isinstance(stop.value, KeyboardInterrupt)
    assert (result.stopped, result.steps, result.history["step"]) == ("interrupted", 4, [1, 2, 3, 4])
    assert result.loss <= min(result.history["validation"]) + 1e-6 and "at step 4" in result.message


def test_before_the_first_step_there_is_nothing_to_keep(tmp_path, table, monkeypatch):
    @contextmanager
    def progress(label, show=True):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(train._fit, "progress", progress)
    result = call("fit", "density", table, "--out", tmp_path / "run", *OPTIONS, status=130)
    assert (
        result.stderr == "interrupted: nothing was written, since training had not begun\n"
        and not (tmp_path / "run").exists()
    )


def test_an_interruption_while_the_start_is_evaluated_is_one_before_the_first_step(monkeypatch):
    evaluate = train._loop.Trainer.evaluate

    def interrupted(self, params):
        signal.raise_signal(signal.SIGINT)
        return evaluate(self, params)

    monkeypatch.setattr(train._loop.Trainer, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt) as stop:
        fk.fit(shift(0), X[:, :1].astype(np.float32), fk.Training(**EVERY_STEP), key=0)
    assert not isinstance(stop.value, Interrupted)  # which would promise weights


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_fit_writes_a_partial_run(tmp_path, table, press, number, status):
    run = tmp_path / "run"
    press(5, number)
    before = signal.getsignal(signal.SIGTERM)
    result = call("fit", "density", table, "--out", run, *OPTIONS, status=status)
    assert signal.getsignal(signal.SIGTERM) == before
    assert result.stdout == "" and result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"interrupted: {run} holds a partial run: training was interrupted at step 3")
    assert json.loads((run / "run.json").read_text())["training"]["stopped"] == "interrupted"
    if status == 130:
        said = "partial.*interrupted at step 3"
        flow = fk.load(run)
        assert flow.record.training.steps == 3 and np.isfinite(flow.log_prob(X)).all()
        for verb in ("info", "check"):
            text = call(verb, run, status=None).stdout
            assert re.search(said, text)
        call("report", run)
        assert "Partial: training was interrupted at step 3." in (run / "report.html").read_text()


@pytest.mark.slow
def test_a_partial_run_does_not_replace_a_whole_one(tmp_path, table, press, monkeypatch):
    run = tmp_path / "run"
    call("fit", "density", table, "--out", run, *OPTIONS[:-2], "-s", "train.steps=1")
    whole = (run / "run.json").read_bytes()
    press(5)
    result = call("fit", "density", table, "--out", run, "--overwrite", *OPTIONS, status=130)
    assert (run / "run.json").read_bytes() == whole
    beside = tmp_path / "run-partial-1"
    assert f"interrupted: {beside} holds a partial run" in result.stderr and fk.load(beside).record.training.partial


def test_an_interruption_after_training_waits_for_the_result(tmp_path, table, monkeypatch):
    def work():
        signal.raise_signal(signal.SIGINT)
        return "whole"

    with pytest.raises(Interrupted) as stop:
        finish(work)
    assert stop.value.result == "whole"
    with pytest.raises(KeyboardInterrupt) as second:
        finish(lambda: (work(), work()))
    assert not isinstance(second.value, Interrupted)
    with pytest.raises(KeyboardInterrupt) as second:  # the first was during training
        finish(work, interrupted=True)
    assert not isinstance(second.value, Interrupted)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interruption_reaches_threads():
    begun = threading.Barrier(2)

    def work(name):
        if name == "two":
            begun.wait(timeout=10)  # the thread that is begun last: by now the caller waits, or is about to
        while True:
            try:
                raise_if_interrupted()
            except KeyboardInterrupt:
                raise Interrupted(name) from None

    def press_when_begun():
        begun.wait(timeout=10)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=press_when_begun).start()
    with pytest.raises(Interrupted) as stop:
        in_threads([lambda: work("one"), lambda: work("two"), lambda: work("never begun")], 2)
    assert stop.value.result == ["one", "two", None]
    raise_if_interrupted()  # nothing here


def test_calls_one_after_another_keep_what_came_before():
    def stop():
        raise Interrupted("half")

    with pytest.raises(Interrupted) as caught:
        in_threads([lambda: "whole", stop, lambda: "never begun"], 1)
    assert caught.value.result == ["whole", "half", None]


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "reports"), [(None, 5), (None, 105), (2, 150)])
def test_levels_of_images_are_kept(press, parallel, reports):
    press(reports)
    settings = {"architecture": "wavelet", "levels": 1, "width": 8, "bits": 3, "parallel": parallel}
    with pytest.raises(Interrupted) as stop:
        fk.images(digits()[0][:100], **settings, train=EVERY_STEP, show_progress=False)
    model = stop.value.result
    assert model.record.training.partial and np.isfinite(model.log_prob(model.held_out)).all()
    assert model.history["level"][0] == 1 and len(set(model.history["level"])) == 1 + (reports > 100)


@pytest.mark.slow
def test_candidates_of_a_posterior_are_kept(press):
    press(31)
    prior = fk.Uniform(low=[-2, -2], high=[2, 2])
    stop_soon = {"patience": 10, "evaluate_every": 1, "learning_rate": 1e-9}  # no step is an improvement
    with pytest.raises(Interrupted) as stop:
        fk.invert(lambda x: x**2, prior, num_simulations=60, **TINY, train=stop_soon)
    posterior = stop.value.result
    assert posterior.record.training.partial and posterior.record.training.part == (2, 3)
    assert posterior.sample(3, y=[1.0, 1.0], key=0).shape == (3, 2)


@pytest.mark.slow
def test_a_classifier_is_kept_with_the_names_of_its_columns(tmp_path, press):
    rows = [",".join(map(str, [*row, "ab"[int(row[0] > 0)]])) for row in X]
    (tmp_path / "t.csv").write_text("\n".join(["u,v,w,kind", *rows]))
    press(5)
    options = ("--label", "kind", "--out", tmp_path / "run", *OPTIONS)
    call("fit", "classify", tmp_path / "t.csv", *options, status=130)
    model = fk.load(tmp_path / "run")
    assert model.names == ("u", "v", "w") and model.record.training.partial


def test_weights_are_said_to_be_kept_only_where_they_are():
    def never_finite(model, batch, key):
        return jnp.sum(batch["x"]) * jnp.nan

    x = X[:, :1].astype(np.float32)
    options = {"objective": never_finite, "held_out_objective": nll, "key": 0, "steps": 3}
    result = fk.fit(shift(0), x, **options, show_progress=False)
    assert result.stopped == "non-finite" and result.message.endswith("the weights of step 0 were kept")
    with pytest.raises(TrainingError) as caught:
        fk.fit(shift(0), x, **options, show_progress=False, throw=True)
    assert "kept" not in str(caught.value)


def test_the_status_says_which_signal_ended_a_command():
    from flowknife.cli._app import Explained, ended_by, received

    received.clear()
    assert ended_by(KeyboardInterrupt()) == (130, "interrupted")
    received[signal.SIGTERM] = 0.0
    assert ended_by(KeyboardInterrupt()) == (143, "terminated")
    assert ended_by(Explained("there")) == (143, "interrupted: there")
    received.clear()
