"""A compiler flag of XLA that saves compile time on CPUs; a flag that the user has set stays."""

import os

import jaxlib

_FLAG = "xla_cpu_use_fusion_emitters"


def choose() -> None:
    """Switch the newer code generator of jaxlib 0.10 off, if JAX has not begun to compute.

    With it, programs of many small layers take about twice the time and the memory to compile, and run at most a tenth
    faster. Other versions of jaxlib may not know the flag, and stop at flags that they do not know.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if jaxlib.__version__.startswith("0.10.") and _FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_FLAG}=false".strip()
