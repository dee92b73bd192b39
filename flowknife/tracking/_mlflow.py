"""MLflow, through mlflow-skinny."""

import io
import math
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowknife import __version__
from flowknife._settings import leaves
from flowknife.errors import InputError
from flowknife.tracking._tracker import Tracker

MODEL = Path(__file__).with_name("_pyfunc.py")
"""The program with which MLflow loads a run."""

_LONGEST = 500  # characters of a parameter


class MLflow(Tracker):
    """A run of MLflow: parameters, metrics, curves, figures, and the model as a pyfunc.

    Args:
        uri: URI of the tracking server, or a folder or database: http://..., sqlite:///mlflow.db, file:mlruns.
        experiment: name of the experiment; created if it does not exist.

    Raises:
        InputError: mlflow is not installed, or the server does not respond.
    """

    def __init__(self, uri: str, experiment: str = "flowknife"):
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError:
            raise InputError('mlflow is not installed; try pip install "flowknife[track]"') from None
        try:
            self._client = MlflowClient(tracking_uri=uri)
            known = self._client.get_experiment_by_name(experiment)
            number = known.experiment_id if known else self._client.create_experiment(experiment)
            self.run_id = self._client.create_run(number).info.run_id
        except MlflowException as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"got track=mlflow:{uri}, which does not answer ({reason}); expected a tracking server"
            ) from None
        self._last, self._done = 0, False

    def measured(self, part: str, step: int, values: Mapping[str, float]) -> None:
        self._last = max(self._last, step)
        for name, value in values.items():
            if math.isfinite(value):
                self._client.log_metric(self.run_id, f"{part}/{name}", value, step=step)

    def fitted(self, result: Any) -> None:
        settings = {"application": result.application, **dict(leaves(result.used.model_dump(exclude_none=True)))}
        for key, value in settings.items():
            self._client.log_param(self.run_id, key, str(value)[:_LONGEST])
        for name, value in result.metrics.items():
            self._client.log_metric(self.run_id, name, value, step=self._last)
        for key, value in {"data": result.record.data.source, "fingerprint": result.record.data.fingerprint}.items():
            self._client.set_tag(self.run_id, key, value)
        with tempfile.TemporaryDirectory() as place:
            for name, figure in result.figures().items():
                stream = io.BytesIO()
                figure.savefig(stream, format="png")
                path = Path(place, f"{name}.png")
                path.write_bytes(stream.getvalue())
                self._client.log_artifact(self.run_id, str(path), "figures")
            folder = result.folder
            run = result.save(Path(place, "run"))
            result._stay_in(folder)
            save_pyfunc(run, Path(place, "model"))
            self._client.log_artifacts(self.run_id, str(Path(place, "model")), "model")
        self._done = True

    def close(self) -> None:
        self._client.set_terminated(self.run_id, "FINISHED" if self._done else "FAILED")


def save_pyfunc(run: str | Path, folder: str | Path) -> None:
    """Write a run directory as a model for `mlflow.pyfunc.load_model`; nothing is pickled.

    Its `predict` returns the scores of rows, or draws with params={"method": "sample", "n": 100, "key": 1}.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of MLflow about its own annotations
        from mlflow import pyfunc
        from mlflow.models import ModelSignature
        from mlflow.types import DataType, ParamSchema, ParamSpec

        options = [("method", DataType.string, "score"), ("n", DataType.long, 100), ("key", DataType.long, 0)]
        pyfunc.save_model(
            path=str(folder),
            python_model=str(MODEL),
            artifacts={"run": str(run)},
            signature=ModelSignature(params=ParamSchema([ParamSpec(*option) for option in options])),
            pip_requirements=[f"flowknife=={__version__}"],
        )
