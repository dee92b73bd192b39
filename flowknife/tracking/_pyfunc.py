"""The model that MLflow serves: a run of flowknife. MLflow runs this file; see `save_pyfunc`."""

from typing import Any

import mlflow
import numpy as np


class Flow(mlflow.pyfunc.PythonModel):
    """A fitted flow: scores of rows, or another method that params name."""

    fitted: Any = None

    def load_context(self, context: Any) -> None:
        """Read the run."""
        import flowknife as fk

        self.fitted = fk.load(context.artifacts["run"])

    def predict(self, context, model_input, params=None):  # MLflow would check data against annotations
        """The table of scores of rows; params={"method": "log_prob"} calls another method with the rows.

        {"method": "sample", "n": 100, "key": 1} draws samples; for a posterior the rows are the observations.
        """
        asked = {"method": "score", "n": 100, "key": 0, **(params or {})}
        method = asked["method"]
        if method == "sample":
            given = {"y": np.asarray(model_input)} if self.fitted.application == "invert" else {}
            return self.fitted.sample(int(asked["n"]), key=int(asked["key"]), **given)
        found = getattr(self.fitted, method)(model_input)
        return found.to_frame() if method == "score" else found


mlflow.models.set_model(Flow())
