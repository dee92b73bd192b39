"""A fitted flow for other programs: StableHLO, ONNX, NumPyro."""

from flowknife.export._numpyro import numpyro_flow
from flowknife.export._onnx import write_onnx
from flowknife.export._programs import KEY, ROWS, TEMPERATURE, Input, Program, frame_of, key_of
from flowknife.export._stablehlo import write_stablehlo

__all__ = [
    "KEY",
    "ROWS",
    "TEMPERATURE",
    "Input",
    "Program",
    "frame_of",
    "key_of",
    "numpyro_flow",
    "write_onnx",
    "write_stablehlo",
]
