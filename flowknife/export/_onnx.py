"""The programs of a model as ONNX, by jax2onnx."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from flowknife._progress import note
from flowknife._types import error_in_words
from flowknife.errors import InputError
from flowknife.export._programs import Program
from flowknife.export._stablehlo import MARK, require_export


def write_onnx(
    folder: str | Path,
    model: Any,
    programs: Mapping[str, Program],
    about: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> Path:
    """Write NAME.onnx for each program that needs no random numbers, and `about.json`.

    They take and return numbers as the network does, in the frames of `about.json`: (value - origin) / scale, and a
    log density is that of the network plus `log_det`. The first axis is a batch of any size.

    Raises:
        InputError: jax2onnx is not installed.
        StorageError: the folder holds something else.
    """
    folder = Path(folder)
    require_export(folder, overwrite)
    try:
        from jax2onnx import to_onnx  # ty: ignore[import-not-found]
    except ImportError:
        raise InputError(
            "jax2onnx is not installed; it asks for other versions than the extras of flowknife, so try an environment "
            "of its own: pip install flowknife jax2onnx onnxruntime"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    written, left_out = {}, {}
    for name, program in programs.items():
        if any(each.dtype == "uint32" for each in program.inputs):  # a key
            continue
        inputs = [(*(["B"] if each.batch else []), *each.shape) for each in program.inputs]
        try:
            to_onnx(
                partial(_unrolled, program.function, model),
                inputs,
                model_name=name,
                return_mode="file",
                output_path=str(folder / f"{name}.onnx"),
            )
        except Exception as error:  # an operation that jax2onnx does not know fails in many ways
            left_out[name] = error_in_words(error)
            note(f"{name} was left out: jax2onnx cannot write it ({left_out[name]})")
            continue
        written[name] = {"inputs": [each._asdict() for each in program.inputs]}
    if not written:
        raise InputError(f"got a model that jax2onnx cannot write ({next(iter(left_out.values()))}); try StableHLO")
    whole = {"written by": MARK, **about, "programs": written}
    (folder / "about.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    return folder


def _unrolled(function, model, *arrays):
    """The result of a program without loops over layers: onnxruntime cannot run those that jax2onnx writes."""
    with jax.disable_jit():
        return function(model, *arrays)
