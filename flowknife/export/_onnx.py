"""The programs of a model as ONNX, by jax2onnx."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    written = {}
    for name, program in programs.items():
        if any(each.dtype == "uint32" for each in program.inputs):  # a key
            continue
        inputs = [(*(["B"] if each.batch else []), *each.shape) for each in program.inputs]
        to_onnx(
            lambda *arrays, program=program: program.function(model, *arrays),
            inputs,
            model_name=name,
            return_mode="file",
            output_path=str(folder / f"{name}.onnx"),
        )
        written[name] = {"inputs": [each._asdict() for each in program.inputs]}
    whole = {"written by": MARK, **about, "programs": written}
    (folder / "about.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    return folder
