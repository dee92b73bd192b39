"""The command line: `flowknife VERB`, one verb per task.

Results go to standard output, progress and errors to standard error. The exit status is 0, 2 for wrong usage, 1 with a
one-line message for user errors, 130 after Ctrl-C. JAX and the modules that need it are imported inside the verbs, so
that help is fast.
"""

from flowknife.cli import (  # noqa: F401, each registers its verbs
    _config,
    _demo,
    _explore,
    _export,
    _fit,
    _images,
    _merge,
    _recipes,
    _runs,
    _sample,
    _score,
    _simulate,
)
from flowknife.cli._app import app

__all__ = ["app"]
