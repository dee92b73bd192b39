"""The run directory and the safe model file.

`model.safetensors` holds a tree: its header lists registered classes with plain values, its body the arrays by their
path in that tree. Nothing in the file can run code: only classes defined in flowknife's own modules are built, field
by field, from numbers, strings and arrays.

A run directory holds `run.json` (the `Record`), `model.safetensors`, `history.csv`, `figures/`, `report.html` and
`skipped.csv`. Every file is written next to its place and moved there, so that a reader never meets half of one.
"""

import dataclasses
import hashlib
import inspect
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from flowknife import bijections, inn, laws, nets, priors
from flowknife._files import NEW, RUN_FILES, WORK, is_run, own_extras, place_of
from flowknife._record import FORMAT, Record
from flowknife._types import Constant
from flowknife.errors import StorageError

_HEADER = "flowknife"


def _classes() -> dict[str, type[eqx.Module]]:
    """Every module class that a file may name."""
    members = [member for room in (bijections, nets, laws, inn, priors) for member in vars(room).values()]
    modules = [member for member in members if inspect.isclass(member) and issubclass(member, eqx.Module)]
    return {module.__name__: module for module in (Constant, *modules) if not inspect.isabstract(module)}


# -- files ------------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: str | os.PathLike) -> Generator[Path, None, None]:
    """A temporary path next to `path` that replaces it when the block succeeds."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        draft.touch(exist_ok=False)  # its mode follows the umask
    except OSError as error:
        raise StorageError(
            f"could not write {path}: nothing can be written there ({error.strerror}); try another place"
        ) from None
    try:
        yield draft
        _sync(draft)
        draft.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise StorageError(f"got {path}, which cannot be written ({error.strerror or error})") from error
    finally:
        draft.unlink(missing_ok=True)


def _sync(path):
    """Bring a file or folder to the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON with an indent; numpy numbers become plain, non-finite ones null."""
    with replacing(path) as place:
        place.write_text(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _plain(value):
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, os.PathLike) else value


# -- model files ------------------------------------------------------------------------------------------------------


def save_tree(path: str | os.PathLike, tree: Any) -> None:
    """Write a tree of modules, dicts, tuples, arrays and plain values to one safetensors file.

    Raises:
        StorageError: if the tree holds anything else, or the file cannot be written.
    """
    from safetensors.numpy import save_file

    arrays: dict[str, np.ndarray] = {}
    header = {"format": FORMAT, "tree": _describe(tree, "", arrays, _classes())}
    with replacing(path) as place:
        save_file(arrays, place, metadata={_HEADER: json.dumps(header)})


def _describe(value, path, arrays, classes):
    if isinstance(value, eqx.Module):
        name = type(value).__name__
        if classes.get(name) is not type(value):
            raise StorageError(
                f"got a {type(value).__module__}.{name} at {path or 'the root'} of the model; expected flowknife's own "
                "classes, which a file can name; try equinox.tree_serialise_leaves for your own"
            )
        fields = {
            item.name: _describe(getattr(value, item.name), f"{path}/{item.name}", arrays, classes)
            for item in dataclasses.fields(value)
        }
        return {"class": name, "fields": fields}
    if isinstance(value, (jax.Array, np.ndarray)):
        arrays[path] = np.asarray(value, order="C")
        return {"array": path}
    if isinstance(value, Mapping):
        # a slash inside a key would look like a step of the path
        places = {key: f"{path}/{key.replace('~', '~0').replace('/', '~1')}" for key in value}
        return {"dict": {key: _describe(item, places[key], arrays, classes) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_describe(item, f"{path}/{i}", arrays, classes) for i, item in enumerate(value)]
    if isinstance(value, (np.integer, np.floating)):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise StorageError(f"got a {type(value).__name__} at {path} of the model; expected arrays and plain values")


def load_tree(path: str | os.PathLike, convert: Callable[[np.ndarray], Any] = jnp.asarray) -> Any:
    """Read what `save_tree` wrote.

    Args:
        path: the file.
        convert: what arrays become; default arrays of JAX, in single precision unless JAX has double.

    Raises:
        StorageError: for a file that is missing, damaged, of a newer format, or written by something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "null"))
            if header is None:
                raise StorageError(f"got {path}, safetensors without a flowknife header; expected a flowknife model")
            _require_format(path, header["format"])
            return _build(header["tree"], lambda name: convert(file.get_tensor(name)), _classes())
    except FileNotFoundError:
        raise StorageError(f"got {path}, which does not exist; expected a model file") from None
    except StorageError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StorageError(f"got {path}, a damaged model file ({reason}); expected one that flowknife wrote") from None


def _build(node, tensor: Callable[[str], Any], classes):
    if isinstance(node, list):
        return tuple(_build(item, tensor, classes) for item in node)
    if not isinstance(node, dict):
        return node
    if "array" in node:
        return tensor(node["array"])
    if "dict" in node:
        return {key: _build(item, tensor, classes) for key, item in node["dict"].items()}
    if node["class"] not in classes:
        raise StorageError(f"got a model with a layer {node['class']!r}; expected one of flowknife's; try a newer one")
    cls, fields = classes[node["class"]], node["fields"]
    names = {item.name: item.default for item in dataclasses.fields(cls)}
    # a field with a default is one that an older version may not have known
    required = {name for name, default in names.items() if default is dataclasses.MISSING}
    if not required <= set(fields) <= set(names):
        raise StorageError(f"got fields {sorted(fields)} of {node['class']}; expected {sorted(names)}")
    module = object.__new__(cls)
    for name in set(names) - set(fields):
        object.__setattr__(module, name, names[name])
    for name, value in fields.items():
        object.__setattr__(module, name, _build(value, tensor, classes))
    return module


# -- run directories --------------------------------------------------------------------------------------------------


def write_run(folder: str | os.PathLike, record: Record, tree: Any, history: Mapping[str, list]) -> Path:
    """Write `run.json`, `model.safetensors` and `history.csv`, in place of the run that is there.

    The files are first written to a folder of their own, whose rename is the moment at which the new run takes the
    place of the old one: a process that is killed at any time leaves one of the two. What flowknife wrote about the old
    run (report, figures, skipped files) is removed. All other files stay.

    Args:
        folder: the run directory; made if there is none.
        record: what `run.json` says.
        tree: the model, see `save_tree`.
        history: equal columns of numbers by name.

    Raises:
        StorageError: the files cannot be written, or the folder is no run and has a file of such a name.
    """
    folder = Path(folder)
    taken = [] if is_run(folder) else [name for name in RUN_FILES if (folder / name).exists()]
    if taken:
        raise StorageError(f"got {folder}, which has a {taken[0]} and is no run; expected a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder, prefix=WORK))
    except OSError as error:
        raise StorageError(
            f"got {folder}, where nothing can be written ({error.strerror}); try another --out"
        ) from None
    try:
        save_tree(draft / "model.safetensors", tree)
        rows = zip(*history.values(), strict=True)
        lines = [",".join(history), *(",".join(f"{value:.8g}" for value in row) for row in rows)]
        (draft / "history.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        _sync(draft / "history.csv")
        files = {name: _sha256(draft / name) for name in RUN_FILES if name != "run.json"}
        record = record.model_copy(update={"files": files})
        write_json(draft / "run.json", record.model_dump(mode="json", exclude_none=True))
        stale = own_extras(folder)
        _move_new(folder)  # of an earlier process that was killed
        draft.rename(folder / NEW)
        _sync(folder)
        _move_new(folder)
        for path in stale:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # there is none, or something else in it
            (folder / "figures").rmdir()
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"got {folder}, where a run cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _move_new(folder):
    """Move the files of a new run to their places."""
    for name in reversed(RUN_FILES):  # run.json last, so that a folder with a run.json is complete
        if (folder / NEW / name).exists():
            (folder / NEW / name).replace(folder / name)
    with suppress(FileNotFoundError):
        (folder / NEW).rmdir()
    _sync(folder)


def _sha256(path):
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_model(folder: str | os.PathLike, record: Record) -> Any:
    """The tree in the model file of a run directory, whose checksum is compared with that of its record.

    Raises:
        StorageError: the file is missing or damaged, or belongs to another run.
    """
    path = place_of(Path(folder), "model.safetensors")
    _require_unchanged(path, record)
    return load_tree(path)


def _require_unchanged(path, record):
    if path.exists() and record.files.get(path.name) != _sha256(path):
        raise StorageError(
            f"got {path}, which is damaged or belongs to another run (its checksum is not that of run.json); expected "
            "the file that was written with it; try a copy, or fitting again"
        )


def read_application(folder: str | os.PathLike) -> str:
    """The application that wrote a run directory.

    Raises:
        StorageError: if there is none, it is damaged, or of another format.
    """
    return json.loads(_read_record(Path(folder)))["application"]


def read_run(folder: str | os.PathLike, settings: Any = dict[str, Any]) -> Record:
    """The `run.json` of a run directory.

    Args:
        folder: the run directory.
        settings: the class of the settings of its application; default plain values.

    Raises:
        StorageError: if there is none, or it is damaged.
    """
    folder = Path(folder)
    text = _read_record(folder)
    try:
        return Record[settings].model_validate_json(text)
    except pydantic.ValidationError as error:
        first, *others = error.errors()
        more = f" ({len(others)} more to mend)" if others else ""
        place = ".".join(map(str, first["loc"]))
        raise StorageError(
            f"got {folder / 'run.json'}, which is damaged or of another version ({place}: {first['msg']}{more}); "
            "expected a run written by `flowknife fit`; try fitting again"
        ) from None


def _read_record(folder):
    """The text of a `run.json` that names its application and has the format of this version."""
    if not folder.is_dir():
        raise StorageError(f"got {folder}, which is not a directory; expected a run written by `flowknife fit`")
    try:
        text = place_of(folder, "run.json").read_text(encoding="utf-8")
        record = json.loads(text)
    except FileNotFoundError:
        raise StorageError(f"got {folder}, which has no run.json; expected a run written by `flowknife fit`") from None
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"got {folder / 'run.json'}, which cannot be read ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("application"), str):
        raise StorageError(f"got {folder / 'run.json'} without an application; expected a run written by flowknife")
    _require_format(folder, record.get("format"))
    return text


def _require_format(path, found):
    if not isinstance(found, int) or isinstance(found, bool):
        raise StorageError(f"got {path} of format {found!r}; expected one that flowknife wrote, of format {FORMAT}")
    if found != FORMAT:
        advice = "an older flowknife wrote it; try fitting again" if found < FORMAT else "try a newer flowknife"
        raise StorageError(f"got {path} of format {found}; expected format {FORMAT}; {advice}")


def read_history(folder: str | os.PathLike, record: Record) -> dict[str, list[float]]:
    """The columns of `history.csv`, empty if there is none.

    Raises:
        StorageError: the file is damaged, or belongs to another run.
    """
    path = place_of(Path(folder), "history.csv")
    if not path.exists():
        return {}
    _require_unchanged(path, record)
    names, *rows = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines() if line] or [[]]
    return {name: [float(row[i]) for row in rows] for i, name in enumerate(names)}
