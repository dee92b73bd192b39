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

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        """The scores of rows, as a table; params={"method": NAME, ...} calls another method with the other params.

        `sample` takes no rows but the number of draws, params={"method": "sample", "n": 100, "key": 1}; of a posterior
        the rows are the observations.
        """
        options = dict(params or {})
        method = options.pop("method", "score")
        if method == "sample":
            given = {"y": np.asarray(model_input)} if self.fitted.application == "invert" else {}
            return self.fitted.sample(int(options.pop("n", 100)), **given, **options)
        found = getattr(self.fitted, method)(model_input, **options)
        return found.to_frame() if method == "score" else found


mlflow.models.set_model(Flow())
