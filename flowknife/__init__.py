"""One invertible network for seven jobs: each job is a choice of the blocks at its two ends.

Examples:
    >>> import flowknife as fk
    >>> flow = fk.density(x)  # doctest: +SKIP
    >>> flow.sample(1000)  # doctest: +SKIP

`__init__.pyi` lists the public names, for type checkers too. Each is imported on first use, so `import flowknife` is
fast.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
