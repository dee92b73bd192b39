"""More that comes from others: sets of simulations, shards, checkpoints, exports, pages, and questions to a live page.

The targets of `tests.fuzz` for folders of several files: one file is damaged, the others are whole, and where a
checksum of one file stands in another it is set right, as whoever changes a file on purpose would do.
"""

import asyncio
import contextlib
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flowknife as fk
from flowknife._files import CARD_MARK, GENERATOR, is_own, own_extras
from flowknife.apps.invert._task import _of_set
from flowknife.cli._merge import _merge, is_done, part_file, tell_part
from flowknife.cli._shards import Shard
from flowknife.data import read_set
from flowknife.data._chunks import MANIFEST
from flowknife.data._simulators import Way
from flowknife.errors import InputError, StorageError
from flowknife.explore import Live, application, count_of, rows_of, seed_of
from flowknife.export import model as standalone
from flowknife.export._stablehlo import require_export, write_stablehlo
from flowknife.train import Checkpoints, _checkpoints
from flowknife.train._loop import _COLUMNS, _End, _Reached, _State
from tests.fuzz import Target, _change_table, changed_bytes, changed_json, changed_model

Files = Mapping[str, bytes]


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path there."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def written(folder: Path, files: Files) -> Path:
    """Write files; the folders that they lie in are made."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _by_kind(rng, content):
    """A damaged file of JSON, of safetensors or of anything else."""
    if content[:1] in b"{[":
        return changed_json(rng, content)
    return changed_model(rng, content) if content[8:9] == b"{" else _change_table(rng, content)


# -- sets of simulations ----------------------------------------------------------------------------------------------

_PRIOR = fk.Uniform(low=[1, 1], high=[2, 2], names=["mass", "speed"])


def _energy(theta):
    if theta[0] > 1.9:
        raise ArithmeticError("no solution")
    return [theta[0] * theta[1] ** 2 / 2, theta[0] * theta[1], 1.0]


def _simulated(folder):
    return fk.simulate(_energy, _PRIOR, 24, out=folder, chunk=8, show_progress=False)


def _sets(folder: Path) -> dict[str, Target]:
    made = _simulated(folder / "sims")
    files, theta, y = content_of(folder / "sims"), made.theta[:], made.y[:]

    def at_hand(place, name, content):
        manifest = json.loads(files[MANIFEST])
        if name.startswith("chunk"):
            manifest["chunks"][int(name[6:14])]["sha256"] = hashlib.sha256(content).hexdigest()
        return written(place, {**files, MANIFEST: json.dumps(manifest).encode(), name: content})

    def read(place, name, content):
        found = read_set(at_hand(place, name, content))
        shown = repr(found)
        task = _of_set(found, None, None, None, None, None)
        pairs, rows = task.pairs, np.array([0, found.rows - 1])
        if not (np.isfinite(pairs.theta).all() and np.isfinite(pairs.y).all()) or len(found.theta[rows]) != 2:
            raise AssertionError("a number that is not finite was read")
        return shown, found.y[rows]

    def completed(place, name, content):
        again = _simulated(at_hand(place, name, content))
        if not (np.array_equal(again.theta[:], theta) and np.array_equal(again.y[:], y, equal_nan=True)):
            raise AssertionError("other simulations than those of the simulator")

    return {"set": Target(files, _by_kind, read), "completed": Target(files, _by_kind, completed)}


# -- shards -----------------------------------------------------------------------------------------------------------


def _shards(folder: Path) -> dict[str, Target]:
    folder.mkdir()
    columns = {"row": np.arange(12), "name": np.array([f"n{i}" for i in range(12)]), "score": np.linspace(0, 3, 12)}
    columns |= {"p_value": np.linspace(0.01, 1, 12), "q_value": np.linspace(0.1, 1, 12), "flag": np.arange(12) < 1}
    columns |= {"discovery": np.zeros(12, bool)}
    of = {"verb": "score", "data": "new.csv", "run": "a" * 64}
    kinds = {
        "s.csv": of,
        "z.csv.gz": of,
        "p.parquet": of,
        "d.csv": of | {"verb": "sample"},
        "a.npy": {"verb": "sample"},
    }
    with contextlib.suppress(ImportError):
        import pyarrow  # noqa: F401

        from flowknife.cli._files import write_columns

        for name, said in kinds.items():
            for part in (1, 2):
                place, own = part_file(folder / name, Shard(part, 2)), slice(part - 1, None, 2)
                if name == "a.npy":
                    np.save(place, columns["score"][own])
                else:
                    write_columns(place, {key: column[own] for key, column in columns.items()})
                more = {"skipped": [["x.png", "empty file"]], "left_out": 1, "alpha": 0.05, "ranked": False}
                tell_part(place, Shard(part, 2), said, 16, 6, more)
    files = content_of(folder)

    def use(place, name, content):
        stem = name.partition(".")[0]
        own = {other: whole for other, whole in files.items() if other.startswith(f"{stem}.")} | {name: content}
        said = name.rpartition(".part-")[0] + f".part-{name.partition('.part-')[2][0]}-of-2.json"
        if name != said:
            own[said] = json.dumps(json.loads(own[said]) | {"sha256": hashlib.sha256(content).hexdigest()}).encode()
        written(place, own)
        out = place / next(whole for whole in kinds if whole.startswith(f"{stem}."))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            _merge(out, overwrite=True)
        if not out.is_file():
            raise AssertionError("nothing was merged")

    def again(place, name, content):
        use_done = name.partition(".")[0]
        out = next(whole for whole in kinds if whole.startswith(f"{use_done}."))
        part = Shard(int(name.partition(".part-")[2][0]), 2)
        written(place, {**{other: whole for other, whole in files.items() if other != name}, name: content})
        is_done(part_file(place / out, part), part, kinds[out])

    return {"shard": Target(files, _by_kind, use), "done": Target(files, _by_kind, again)}


# -- checkpoints ------------------------------------------------------------------------------------------------------


class _Right(str):
    """A checksum that is that of everything."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


@contextlib.contextmanager
def _any_checksum():
    before, _checkpoints._digest = _checkpoints._digest, lambda arrays, plain: _Right()
    try:
        yield
    finally:
        _checkpoints._digest = before


_WAY = Way(lifted=False, batch="", noisy=True, tolerance=0.0)


def _checkpoint(folder: Path) -> Target:
    about, like = {"fit": "density", "layers": 2}, (jnp.ones((2, 3)), {"a": jnp.zeros(4), "n": jnp.arange(2)})
    history = {name: [1.0, 2.0] for name in _COLUMNS}
    reached = _Reached((like, like, like), like, jnp.zeros(()), 0.5, history=history, step=20)
    kept = Checkpoints(folder, about, key=jax.random.key(0), show=False)
    for step in (10, 20):
        kept.part("a").save(step, reached.arrays, reached.plain | {"seconds": 1.5, "minutes": None})
    end = {"loss": 1.0, "step": 10, "steps": 20, "seconds": 2.0, "history": history, "fault": "", "dropped": 0}
    kept.part("b").finish(like, end | {"stopped": "budget"})
    for first in (0, 3):
        kept.part("sims").write(_WAY, first, [np.arange(2.0), "no solution", np.arange(2.0)])
    files = content_of(folder)
    everything = kept.part("sims").read()[1]

    def use(place, name, content):
        written(place, {**files, name: content})
        with _any_checksum():
            again = Checkpoints(place, about, resume=True, key=jax.random.key(0), show=False)
            found = again.part("a").latest(reached.arrays, _State)
            ended = again.part("b").finished(like, _End)
            _, outcomes = again.part("sims").read()
        if found is None and not name.startswith("a/"):
            raise AssertionError("a whole checkpoint was not used")
        if found is not None:
            plain = {name: value for name, value in found[1].items() if name not in ("seconds", "minutes")}
            _Reached(*found[0], **plain).evaluated(1.0, 0.25)  # ty: ignore[missing-argument]
        if ended is not None and not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ended[0])):
            raise AssertionError("weights that are not finite")
        if len(outcomes) > len(everything) + 10**6:
            raise AssertionError("more simulations than there are")

    return Target(files, _by_kind, use)


# -- exports and pages ------------------------------------------------------------------------------------------------


def _export(folder: Path, flow: Any) -> Target:
    programs, about = flow._exported()
    name = "log_prob"
    write_stablehlo(folder, flow.model, {name: programs[name]}, {"application": "density", "kind": "rows", **about})
    files = {part: content for part, content in content_of(folder).items() if part != "model.py"}

    def use(place, part, content):
        written(place, {**files, part: content})
        with contextlib.suppress(StorageError):
            require_export(place, overwrite=True)
        try:
            standalone.Model(place)._content(f"{name}.stablehlo")
        except ValueError as error:  # it knows nothing of flowknife, nor of its errors
            if not str(error).startswith(f"got {place}"):
                raise
            raise InputError(str(error)) from None

    return Target(files, _by_kind, use)


def _pages() -> Target:
    """What flowknife takes for its own, and would replace."""
    files = {
        "card.md": f"{CARD_MARK}\n# A run\n\nnll 1.0\n".encode(),
        "report.html": f"<!doctype html>\n<head>{GENERATOR}</head>".encode(),
        "skipped.csv": b"path,reason\na.png,empty file\n",
        "figures/history.png": b"\x89PNG\r\n\x1a\n flowknife/history.png",
    }

    def use(place, name, content):
        written(place, {**files, name: content})
        if not is_own(place / name) and place / name in own_extras(place):
            raise AssertionError("a file of somebody else would be removed")

    return Target(files, changed_bytes, use)


# -- questions to a live page -----------------------------------------------------------------------------------------

_HOST = "127.0.0.1:8765"
_OWN = {"host": _HOST, "origin": f"http://{_HOST}", "content-type": "application/json"}


def _plain_page() -> Live:
    """A page whose calls take what those of the jobs take, and compile nothing."""

    def values(x, n, given=None, rows=1):
        return rows_of(x, n, 2).astype(float) / (1 if given is None else rows_of(given, rows, 1).sum())

    def sample(n, seed=0, temperature=1.0):
        drawn = np.random.default_rng(seed_of(seed)).normal(size=(min(count_of(n), 100), 2))
        return {"x": drawn * temperature, "p": None, "mean": float(drawn.mean() / temperature)}

    return Live("a page", "{}", {"values": values, "sample": sample})


def _questions(pages: Mapping[str, Live]) -> Target:
    numbers = {"f8": "AAAAAAAA8D8AAAAAAAAAQA=="}  # 1, 2
    asked = {
        "sample": {"n": 4, "seed": 3, "temperature": 0.5},
        "values": {"x": numbers, "n": 1, "given": [2.0], "rows": 1},
        "encode": {"x": numbers, "n": 1},
        "decode": {"z": numbers, "n": 1},
        "log_prob": {"x": numbers, "n": 1},
        "joint": {"x": numbers, "n": 1},
        "read_rows": {"text": "a,b\n1,2\n3,4\n"},
        "score": {"x": {"u1": "AAECAwQFBgcICQ=="}, "n": 1},
        "read": {"file": {"u1": "iVBORw0KGgo="}},
    }
    seeds = {
        f"{page} {name}": json.dumps({"path": f"/api/{name}", "headers": _OWN, "body": body}).encode()
        for page, live in pages.items()
        for name, body in asked.items()
        if name in live.calls
    }
    apps = {page: application(live, frozenset({_HOST}), None) for page, live in pages.items()}
    guarded = {page: application(live, None, "secret") for page, live in pages.items()}

    def change(rng, content):
        asked = json.loads(content)
        how = rng.randrange(6)
        if how < 3:  # the question alone
            return changed_json(rng, json.dumps(asked["body"]).encode())
        return changed_json(rng, content)

    def use(place, name, content):
        page = name.partition(" ")[0]
        path, headers, body = _request(content, f"/api/{name.partition(' ')[2]}")
        for app, token in ((guarded[page], "secret"), (apps[page], None)):
            said = io.StringIO()
            with contextlib.redirect_stderr(said):
                status, text = asyncio.run(_asked(app, path, headers, body))
            if status >= 500:
                raise AssertionError(f"status {status}: {said.getvalue()[-300:]}")
            if status == 200 and token and headers.get("x-token") != token:
                raise AssertionError("answered without the token")
            if status == 200 and not token and headers.get("host") != _HOST:
                raise AssertionError("answered as another host")
            if text[:1] in (b"{", b"["):
                json.loads(text, parse_constant=_no_number)
        if status != 200:
            raise InputError("refused")

    return Target(seeds, change, use)


def _no_number(name):
    raise AssertionError(f"the page cannot read {name}")


def _request(content: bytes, path: str) -> tuple[str, dict[str, str], bytes]:
    """The request that a damaged one stands for; of what is none, the body of one."""
    with contextlib.suppress(ValueError, RecursionError, TypeError, AttributeError):
        asked = json.loads(content)
        if {"path", "headers"} & set(asked):
            headers: dict[str, str] = {}
            for name, value in dict(asked.get("headers", {})).items():
                headers.setdefault(str(name).lower(), str(value))  # names of headers do not depend on the case
            return str(asked.get("path", path)), headers, json.dumps(asked.get("body")).encode()
    return path, _OWN, content


async def _asked(app, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
    """Status and content of a reply, as a server would send it."""
    raw = [(k.lower().encode("latin1", "replace"), v.encode("latin1", "replace")) for k, v in headers.items()]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"}
    whole, _, query = path.partition("?")
    scope |= {"path": whole, "raw_path": whole.encode("utf-8", "replace"), "headers": raw, "root_path": ""}
    scope |= {"query_string": query.encode("latin1", "replace"), "server": ("127.0.0.1", 8765), "client": ("::1", 1)}
    sent = [{"type": "http.request", "body": body, "more_body": False}]
    found: dict[str, Any] = {"status": 0, "body": b""}

    async def receive():
        return sent.pop() if sent else {"type": "http.disconnect"}

    async def send(message):
        if message["type"] == "http.response.start":
            found["status"] = message["status"]
        else:
            found["body"] += message.get("body", b"")

    await app(scope, receive, send)
    return found["status"], found["body"]


def more_targets(folder: Path, runs: Mapping[str, Any], every: bool) -> dict[str, Target]:
    """The kinds of this module; the seeds are written to `folder`.

    Args:
        folder: a new place.
        runs: a result of each application.
        every: ask the live pages of all of them too, which compiles programs.
    """
    pages = {"plain": _plain_page()}
    if every:
        pages |= {name: result._live() for name, result in runs.items()}
    return {
        **_sets(folder),
        **_shards(folder / "shards"),
        "checkpoint": _checkpoint(folder / "checkpoints"),
        "export": _export(folder / "export", runs["density"]),
        "page": _pages(),
        "question": _questions(pages),
    }
