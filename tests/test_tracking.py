"""Tracking of fits: nothing that was not asked for, and all of it where it was."""

import csv
from pathlib import Path

import numpy as np
import pytest

import flowknife as fk
from flowknife.errors import InputError
from flowknife.tracking import Tracker, as_trackers
from tests.command import call, refused

SMALL = {"layers": 1, "width": 4, "depth": 1, "scalar": "affine", "show_progress": False, "train": {"steps": 30}}
X = fk.data.TOYS["moons"].sample(200, key=0)


class Noted(Tracker):
    """Keeps what it is told."""

    def __init__(self):
        self.rows, self.results, self.closed = [], [], False

    def measured(self, part, step, values):
        self.rows.append((part, step, dict(values)))

    def fitted(self, result):
        self.results.append(result)

    def close(self):
        self.closed = True


def test_a_tracker_hears_of_training_and_of_the_result():
    tracker = Noted()
    flow = fk.density(X, track=tracker, **SMALL)
    steps = [step for _, step, _ in tracker.rows]
    assert steps == flow.history["step"] and {part for part, *_ in tracker.rows} == {"density"}
    heard = [values["validation"] for *_, values in tracker.rows]
    np.testing.assert_allclose(heard, flow.history["validation"])
    assert tracker.results == [flow] and tracker.closed


def test_a_tracker_is_closed_when_a_fit_fails(monkeypatch):
    tracker = Noted()
    with pytest.raises(InputError):
        fk.density("no such file.csv", track=tracker)
    assert tracker.closed and not tracker.results


@pytest.mark.parametrize("track", ["tensorboard", "tensorboard:", "wandb:x", 3, ["mlflow"]])
def test_an_unknown_tracker_is_an_error(track):
    with pytest.raises(InputError, match="tensorboard:DIR"):
        as_trackers(track)


def test_nothing_is_written_that_was_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fk.density(X, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_has_curves_metrics_and_a_figure(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import RecordWriter  # noqa: F401, the format of what is read below

    np.savetxt(tmp_path / "x.csv", X, delimiter=",", header="a,b", comments="")
    logs = tmp_path / "logs"
    settings = ["-s", "layers=1", "-s", "width=4", "-s", "depth=1", "-s", "scalar=affine", "-s", "train.steps=30"]
    call("fit", "density", tmp_path / "x.csv", "--out", tmp_path / "run", "--track", f"tensorboard:{logs}", *settings)
    tags = set()
    for path in logs.iterdir():
        content, place = path.read_bytes(), 0
        while place < len(content):
            size = int.from_bytes(content[place : place + 8], "little")
            event = event_pb2.Event.FromString(content[place + 12 : place + 12 + size])
            tags |= {value.tag for value in event.summary.value}
            place += size + 16
    assert {"density/train", "density/validation", "metrics/nll", "figures/samples", "figures/history"} <= tags
    assert any("settings" in tag for tag in tags)
    with (tmp_path / "run" / "history.csv").open() as stream:
        assert next(csv.reader(stream)) == ["step", "seconds", "train", "validation"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_parameters_metrics_figures_and_a_model_that_predicts(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db" if _has_databases() else f"file:{tmp_path}/mlruns"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    flow = fk.density(X, track=f"mlflow:{uri}#moons", **SMALL)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("moons")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["layers"] == "1" and run.data.params["train.steps"] == "30"
    assert run.data.metrics["nll"] == pytest.approx(flow.metrics["nll"])
    curve = client.get_metric_history(run.info.run_id, "density/validation")
    assert [point.step for point in curve] == flow.history["step"]
    names = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert names == {"figures", "model"}
    model = mlflow.pyfunc.load_model(client.download_artifacts(run.info.run_id, "model", str(tmp_path)))
    scores = model.predict(X[:5])
    np.testing.assert_array_equal(scores["log_prob"], flow.log_prob(X[:5]))
    drawn = model.predict(X[:1], params={"method": "sample", "n": 4, "key": 1})
    np.testing.assert_array_equal(drawn, flow.sample(4, key=1))
    assert flow.folder is None and not Path("run").exists()


def _has_databases():
    try:
        import sqlalchemy  # noqa: F401
    except ImportError:
        return False
    return True


def test_the_command_line_refuses_an_unknown_tracker(tmp_path):
    np.savetxt(tmp_path / "x.csv", X, delimiter=",")
    refused("fit", "density", tmp_path / "x.csv", "--out", tmp_path / "run", "--track", "wandb:x", words="mlflow:URI")
