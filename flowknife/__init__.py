"""One invertible model, seven jobs; a job is only a choice of what stands at the two ends.

Examples:
    >>> import flowknife as fk
    >>> flow = fk.density(x)  # doctest: +SKIP
    >>> flow.sample(1000)  # doctest: +SKIP

`__init__.pyi` lists the names, for type checkers too. Each is imported when it is first used, so that importing
flowknife itself costs nothing.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
