"""The programs of a model as ONNX, by jax2onnx."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flowknife._progress import note
from flowknife._types import error_in_words
from flowknife.errors import InputError
from flowknife.export._programs import Program
from flowknife.export._stablehlo import MARK, require_export

_TRIED = 3  # items in the batch that is tried

_AGREE = 1e-4  # of a number, or of 1, that onnxruntime may be off


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
            _require_agreement(folder / f"{name}.onnx", program, model)
        except Exception as error:  # an operation that jax2onnx or onnxruntime does not know fails in many ways
            left_out[name] = error_in_words(error)
            (folder / f"{name}.onnx").unlink(missing_ok=True)
            note(f"{name} was left out: no ONNX program of it runs ({left_out[name]}); try StableHLO")
            continue
        written[name] = {"inputs": [each._asdict() for each in program.inputs]}
    if not written:
        raise InputError(
            f"got a model that jax2onnx cannot write, or onnxruntime not run ({next(iter(left_out.values()))}); try "
            "StableHLO"
        )
    whole = {"written by": MARK, **about, "programs": written}
    (folder / "about.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    return folder


def _unrolled(function, model, *arrays):
    """The result of a program without loops over layers: onnxruntime cannot run those that jax2onnx writes."""
    with jax.disable_jit():
        return function(model, *arrays)


def _require_agreement(path, program, model):
    """Run a program that was written, where onnxruntime is installed: some models are written and cannot be run.

    Raises:
        ValueError: its numbers are not those of JAX.
    """
    try:
        import onnxruntime  # ty: ignore[import-not-found]
    except ImportError:
        note(f"{path.name} was not tried: onnxruntime is not installed")
        return
    generator = np.random.default_rng(0)
    arrays = [_tried(each, generator) for each in program.inputs]
    onnxruntime.set_default_logger_severity(4)  # what it cannot run is reported below
    session = onnxruntime.InferenceSession(path)
    names = [each.name for each in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, arrays, strict=True)))
    expected = np.asarray(program.function(model, *arrays))
    far = np.abs(found - expected) > _AGREE * np.maximum(np.abs(expected), 1)
    if found.shape != expected.shape or far.any():
        raise ValueError(f"onnxruntime finds other numbers: {found.ravel()[:3]} for {expected.ravel()[:3]}")


def _tried(each, generator):
    """A batch of random items for an input."""
    shape = (*([_TRIED] if each.batch else []), *each.shape)
    if np.dtype(each.dtype).kind in "iu":
        return generator.integers(0, 2 if each.dtype == "int32" else 256, shape).astype(each.dtype)
    return generator.normal(size=shape).astype(each.dtype)
