"""The run directory: one save and one load.

A run directory holds `run.json` (the `Record`), `model.safetensors`, `history.csv`, `card.md`, `figures/`,
`report.html` and `skipped.csv`. Every file is written to a temporary name in the same folder and then renamed, so that
a reader never sees half of it.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pydantic

from flowknife._files import NEW, RUN_FILES, WORK, is_run, own_extras, place_of, read_file, replacing, sha256_of, sync
from flowknife._record import Record
from flowknife._trees import load_tree, require_format, require_room, save_tree
from flowknife.errors import StorageError

# -- files ------------------------------------------------------------------------------------------------------------


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


# -- run directories --------------------------------------------------------------------------------------------------


def write_run(folder: str | os.PathLike, record: Record, tree: Any, history: Mapping[str, list]) -> Path:
    """Write `run.json`, `model.safetensors` and `history.csv`, replacing an earlier run.

    The files are first written to a temporary folder. Renaming it replaces the old run by the new one in a single step,
    so a process that is killed at any time leaves one of the two complete. The report, figures and skipped files of the
    old run are removed. All other files stay.

    Args:
        folder: the run directory; created if it does not exist.
        record: the content of `run.json`.
        tree: the model, see `save_tree`.
        history: equal columns of numbers by name.

    Raises:
        StorageError: the files cannot be written, or the folder is no run and has a file of such a name.
    """
    folder = Path(folder)
    taken = [] if is_run(folder) else [name for name in RUN_FILES if (folder / name).exists()]
    if taken:
        raise StorageError(f"got {folder}, which has a {taken[0]}, but is not a run; expected a new folder")
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
        sync(draft / "history.csv")
        files = {name: sha256_of(draft / name) for name in RUN_FILES if name != "run.json"}
        record = record.model_copy(update={"files": files})
        write_json(draft / "run.json", record.model_dump(mode="json", exclude_none=True))
        stale = own_extras(folder)
        _move_new(folder)  # files that an earlier, killed process left
        draft.rename(folder / NEW)
        sync(folder)
        _move_new(folder)
        for path in stale:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # there is none, or it is not empty
            (folder / "figures").rmdir()
    except StorageError as error:
        raise StorageError(str(error).replace(str(draft), str(folder))) from None
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
    sync(folder)


def read_model(folder: str | os.PathLike, record: Record) -> Any:
    """Read the tree in the model file of a run directory, after comparing its checksum with the record.

    Raises:
        StorageError: the file is missing or damaged, or belongs to another run.
    """
    path = place_of(Path(folder), "model.safetensors")
    try:
        require_room(path, path.stat().st_size)
        checksum = sha256_of(path)
    except FileNotFoundError:
        return load_tree(path)  # raises the error
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"got {path}, which cannot be read ({error.strerror}); try a copy") from None
    _require_unchanged(path, checksum, record)
    return load_tree(path)


def _require_unchanged(path, checksum, record):
    if record.files.get(path.name) != checksum:
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
        more = f" ({len(others)} more errors)" if others else ""
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
        text = read_file(place_of(folder, "run.json")).decode("utf-8")
        record = json.loads(text)
    except FileNotFoundError:
        raise StorageError(f"got {folder}, which has no run.json; expected a run written by `flowknife fit`") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f"got {folder / 'run.json'}, which cannot be read ({reason}); expected a run written by `flowknife fit`"
        ) from None
    if not isinstance(record, dict) or not isinstance(record.get("application"), str):
        raise StorageError(f"got {folder / 'run.json'} without an application; expected a run written by flowknife")
    require_format(folder, record.get("format"))
    return text


def read_history(folder: str | os.PathLike, record: Record) -> dict[str, list[float]]:
    """The columns of `history.csv`, empty if there is none.

    Raises:
        StorageError: the file is damaged, or belongs to another run.
    """
    path = place_of(Path(folder), "history.csv")
    if not path.exists():
        return {}
    try:
        content = read_file(path)
        _require_unchanged(path, hashlib.sha256(content).hexdigest(), record)
        lines = content.decode("utf-8").splitlines()
        names, *rows = [line.split(",") for line in lines if line] or [[]]
        columns = [list(map(float, column)) for column in zip(*rows, strict=True)] or [[] for _ in names]
        return dict(zip(names, columns, strict=True))
    except StorageError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"got {path}, which is damaged ({reason}); expected equal columns of numbers") from None
