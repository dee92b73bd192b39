"""A folder with the programs of a model, which run with JAX alone."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.export
import numpy as np

from flowknife._batches import NUMBERS_AT_ONCE
from flowknife._files import WORK, read_json
from flowknife._record import package_versions
from flowknife.errors import InputError, StorageError
from flowknife.export._programs import Program

MARK = "flowknife export"
"""What `about.json` of such a folder calls itself."""

_FEWEST = (64, 1024)  # items in a batch: a layer may take another way with fewer

_FIXED = 64  # items, where the number cannot be left open

_PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(
    folder: str | Path,
    model: Any,
    programs: Mapping[str, Program],
    about: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> Path:
    """Write the programs of a model, as StableHLO, with its weights and a `model.py` that runs them.

    Args:
        folder: a new one, or with `overwrite` one that this wrote.
        model: what the programs take first; its arrays are the weights.
        programs: by name.
        about: what `model.py` has to know beside them.
        overwrite: replace such a folder.

    Returns:
        the folder.

    Raises:
        InputError: flatbuffers, in which jax.export writes, is not installed.
        StorageError: the folder holds something else, or cannot be written.
    """
    folder = Path(folder)
    require_export(folder, overwrite)
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise InputError('flatbuffers is not installed; try pip install "flowknife[export]"') from None
    weights, rest = eqx.partition(model, eqx.is_array)
    leaves, structure = jax.tree.flatten(weights)
    written, known = {}, {}
    for name, program in programs.items():
        written[name], size = _exported(program, leaves, lambda own: eqx.combine(structure.unflatten(own), rest))
        known[name] = {
            "inputs": [each._asdict() for each in program.inputs],
            "most": program.most,
            **size,
        }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=WORK))
    except OSError as error:
        raise StorageError(
            f"got {folder}, where nothing can be written ({error.strerror}); try another place"
        ) from None
    try:
        for name, content in written.items():
            (draft / f"{name}.stablehlo").write_bytes(content)
        with (draft / "weights.npz").open("wb") as stream:
            arrays: dict[str, Any] = {f"w{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
            np.savez(stream, **arrays)
        (draft / "model.py").write_bytes(Path(__file__).with_name("model.py").read_bytes())
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(draft.iterdir())}
        whole = {"written by": MARK, "versions": package_versions(), "files": files, **about, "programs": known}
        whole = json.loads(json.dumps(whole))
        whole["sha256"] = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
        (draft / "about.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
        draft.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    except OSError as error:
        raise StorageError(f"got {folder}, which cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def require_export(folder: Path, overwrite: bool) -> None:
    """Refuse a place that holds anything but an earlier export."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        own = read_json(folder / "about.json").get("written by") == MARK
    except (OSError, ValueError, AttributeError):
        own = False
    if not own:
        raise StorageError(f"got {folder}, which is not empty and no export; expected a new folder")
    if not overwrite:
        raise StorageError(
            f"got {folder}, which holds an export; expected a new folder; try overwrite=True (--overwrite)"
        )


def _exported(program, leaves, model_of):
    """A program as jax.export writes it, and what sizes its batches may have."""

    def run(own, *arrays):
        return program.function(model_of(own), *arrays)

    own = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    if program.most is not None and program.most <= _FEWEST[0]:
        size = min(program.most, _fitting(program))
        return _serialised(run, own, program, dict.fromkeys(_axes(program), (size,))), {"fixed": size}
    for fewest in _FEWEST:
        scope = jax.export.SymbolicScope([f"n >= {fewest}"])
        sizes = {name: jax.export.symbolic_shape(name, scope=scope) for name in _axes(program)}
        with suppress(Exception):  # a layer that needs to know the size fails in many ways
            return _serialised(run, own, program, sizes), {"least": fewest}
    return _serialised(run, own, program, dict.fromkeys(_axes(program), (_FIXED,))), {"fixed": _FIXED}


def _fitting(program):
    """How many items a batch has at most, for their size."""
    numbers = sum(int(np.prod(each.shape)) for each in program.inputs if each.batch)
    return 2 ** int(np.log2(max(NUMBERS_AT_ONCE / max(numbers, 1), 1)))


def _axes(program):
    return dict.fromkeys(each.batch for each in program.inputs if each.batch)


def _serialised(run, own, program, sizes):
    shapes = [
        jax.ShapeDtypeStruct((*sizes.get(each.batch, ()), *each.shape), np.dtype(each.dtype)) for each in program.inputs
    ]
    return bytes(jax.export.export(jax.jit(run), platforms=_PLATFORMS)(own, *shapes).serialize())
