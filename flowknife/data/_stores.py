"""Listing and reading files in a store of fsspec (s3://, gs://, https://, ...), concurrently and with retries."""

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from flowknife.errors import InputError

_ATTEMPTS = 6
_FIRST_DELAY = 0.2  # seconds; doubled after every attempt
_CONNECTIONS = 32
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_STAMPS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "modified", "created")


class Entry(NamedTuple):
    """A file of a store.

    Attributes:
        name: its path relative to the listed folder.
        path: its path in the store.
        size: size in bytes, None if the store does not report it.
        stamp: a text that changes with the file: its ETag or modification time, and its size.
    """

    name: str
    path: str
    size: int | None
    stamp: str


class Unread(str):
    """The reason why a file could not be read; a later attempt may succeed."""


def is_url(source: Any) -> bool:
    """Whether `source` is the address of a store rather than a path."""
    return isinstance(source, str) and "://" in source


class Store:
    """A folder of a store.

    Args:
        url: its address. Endpoint, credentials and other options come from the environment (such as AWS_ENDPOINT_URL)
            and the configuration of fsspec.

    Raises:
        InputError: the package for this protocol is not installed.
    """

    def __init__(self, url: str):
        self.url = url
        protocol = url.split(":", 1)[0]
        try:
            from fsspec.config import conf
            from fsspec.core import url_to_fs

            options: dict[str, Any] = {}
            if protocol in ("s3", "s3a"):
                given = conf.get(protocol, {}).get("config_kwargs", {})
                options["config_kwargs"] = {"max_pool_connections": _CONNECTIONS, **given}
            self._files, self._root = url_to_fs(url, **options)
        except ImportError as error:
            extra = "'flowknife[s3]'" if protocol in ("s3", "s3a") or error.name == "fsspec" else "what speaks it"
            raise InputError(
                f"got {url!r}, and what reads {protocol}:// is not installed; try pip install {extra}"
            ) from None
        except ValueError as error:
            raise InputError(f"got {url!r} ({_line(error)}); expected such as s3://bucket/folder") from None
        self._root = self._root.rstrip("/")

    def entries(self) -> list[Entry]:
        """All files below the folder, sorted by name, from all pages of its listing.

        Raises:
            InputError: there is no such folder, or it cannot be listed.
        """
        found = self._listing()
        entries = [self._entry(path, info) for path, info in found.items() if not path.endswith("/")]
        if any(not entry.name for entry in entries):
            raise InputError(f"got the file {self.url!r}; expected a folder of images; try the folder it lies in")
        return sorted(entries)

    def beside(self, name: str) -> Entry | None:
        """A file next to the folder, if the store has a parent level; the file need not exist."""
        parent, slash, _ = self._root.rpartition("/")
        return Entry(name, f"{parent}/{name}", None, "") if slash else None

    def read(self, entries: Sequence[Entry]) -> list[bytes | str]:
        """The content of each file, or the reason why it cannot be read; temporary errors are retried with backoff."""
        results: dict[int, bytes | str] = {i: b"" for i, entry in enumerate(entries) if entry.size == 0}
        waiting = [i for i in range(len(entries)) if i not in results]
        for _ in _attempts():
            contents = self._read_once([entries[i] for i in waiting])
            results |= {i: _as_result(content) for i, content in zip(waiting, contents, strict=True)}
            waiting = [i for i in waiting if isinstance(results[i], Unread)]
            if not waiting:
                break
        return [results[i] for i in range(len(entries))]

    def _listing(self) -> dict[str, Any]:
        message = ""
        for _ in _attempts():
            try:
                self._files.invalidate_cache()
                return self._files.find(self._root, detail=True)
            except FileNotFoundError:
                raise InputError(
                    f"there is no folder {self.url!r}; expected a folder of images; check the name and the endpoint"
                ) from None
            except Exception as error:  # each kind of store has its own errors
                message = _line(error)
                if isinstance(error, _LASTING):
                    break
        raise InputError(
            f"got {self.url!r}, which cannot be listed ({message}); check the credentials and the endpoint"
        )

    def _read_once(self, entries):
        # with both ends given, the size need not be requested first
        starts = [None if entry.size is None else 0 for entry in entries]
        try:
            return self._files.cat_ranges(
                [entry.path for entry in entries], starts, [entry.size for entry in entries], on_error="return"
            )
        except Exception as error:
            return [error] * len(entries)

    def _entry(self, path, info):
        stamp = next((str(info[name]) for name in _STAMPS if info.get(name) is not None), "")
        name = path[len(self._root) :].lstrip("/")
        return Entry(name, path, info.get("size"), f"{stamp.strip(chr(34))} {info.get('size')}")


def _attempts() -> Iterator[int]:
    """The numbers of the attempts, with a longer pause before each, randomised to spread the load."""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_FIRST_DELAY * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
        yield attempt


def _as_result(content):
    if not isinstance(content, BaseException):
        return bytes(content)
    if isinstance(content, PermissionError):
        return "no permission to read"
    if isinstance(content, _LASTING):
        return "no such file"
    return Unread(f"cannot be read ({_line(content)})")


def _line(error):
    """An error message on one line of limited length."""
    message = " ".join(str(error).split()) or type(error).__name__
    return message if len(message) <= 120 else message[:117] + "..."
