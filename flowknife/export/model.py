"""A fitted flow that runs with JAX and NumPy, without flowknife, which wrote the folder of this file.

    from model import Model          # this file; what it needs: pip install jax flatbuffers

    flow = Model()                   # the folder of this file, or Model("another/folder")
    flow.log_prob(x)                 # of a posterior log_prob(x, y), of a density with conditions log_prob(x, given)
    flow.sample(1000, key=1)         # the same numbers as flowknife draws with this key
    flow.encode(x); flow.decode(z)

    python model.py log_prob rows.npy --out log_prob.npy

Arrays in, arrays out, in the units of the data. `flow.about` (about.json) has the names of the columns. The programs
(NAME.stablehlo) are those of flowknife, as jax.export writes them; weights.npz holds their first arguments. A file
whose checksum is not that of about.json is refused.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

# flowknife compiles with these options; others may round the last digit differently
_VERSION = ".".join(importlib.metadata.version("jaxlib").split(".")[:2])
_CHOSEN = {"xla_cpu_use_fusion_emitters": "false"} if _VERSION == "0.10" else {}
_ACCELERATED = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
if _VERSION in ("0.10", "0.11", "0.12") and not _ACCELERATED:
    _CHOSEN["xla_backend_optimization_level"] = "1"
_FLAGS = os.environ.get("XLA_FLAGS", "")
_OWN = [f"--{name}={value}" for name, value in _CHOSEN.items() if name not in _FLAGS]
os.environ["XLA_FLAGS"] = " ".join([*_FLAGS.split(), *_OWN])

import jax  # noqa: E402
import jax.export  # noqa: E402
import jax.numpy as jnp  # noqa: E402

_NUMBERS_AT_ONCE = 800_000  # of a batch, at most


class Model:
    """The programs of a folder that `flow.export` wrote.

    Args:
        folder: default the one of this file.

    Raises:
        ValueError: a file is damaged.
        OSError: it cannot be read.
    """

    def __init__(self, folder: Any = None):
        self.folder = Path(__file__).parent if folder is None else Path(folder)
        try:
            self.about = json.loads((self.folder / "about.json").read_bytes())
            own = self.about.pop("sha256")
            if hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest() != own:
                raise ValueError("its checksum is another")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"got {self.folder / 'about.json'}, which is damaged ({error}); expected that of an export; try "
                "to export again"
            ) from None
        with np.load(io.BytesIO(self._content("weights.npz")), allow_pickle=False) as arrays:
            self._weights = [jnp.asarray(arrays[f"w{i}"]) for i in range(len(arrays.files))]
        self._compiled: dict[str, Any] = {}

    # -- what a flow can do ------------------------------------------------------------------------------------------

    def log_prob(self, x: Any, given: Any = None) -> np.ndarray:
        """Log density in nats, (n,), in the units of the data; of a classifier that of each class, (n, K).

        Args:
            x: rows (n, d), or images, uint8 (n, H, W, C).
            given: conditions, one row for all or one for each; of a posterior the observations; of images the number of
                their class.
        """
        kind, parts = self.about["application"], self._parts(x, given)
        if kind == "invert":
            inside, possible = self._supported(x)
            found = self._in_batches("log_prob", [inside, *parts[1:]])
            found = found.astype(np.float64) + self.about["log_det"]
            return np.where(possible & ~np.isnan(found), found, -np.inf)
        found = self._in_batches("log_prob", parts)
        if kind == "images":
            sizes = np.array(self.about["level_sizes"])
            bits = found.astype(np.float64)[:, -len(sizes) :] @ sizes / sizes.sum()
            return -bits * np.prod(self.about["shape"]) * np.log(2)
        if kind == "classify":
            return found.astype(np.float64) + self.about["log_det"]
        return np.where(self._possible(x), found + self.about["log_det"], -np.inf)

    def predict_proba(self, x: Any) -> np.ndarray:
        """Of a classifier, the probability of each class, (n, K), in the order of `about["classes"]`."""
        prior = np.asarray(self.about["log_prior"], np.float32)
        joint = self._in_batches("log_prob", self._parts(x, None)).astype(np.float64) + prior
        known = np.isfinite(joint).any(axis=1, keepdims=True)
        scaled = np.where(known, joint / self.about["temperature"], prior)
        odds = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def encode(self, x: Any, given: Any = None) -> np.ndarray:
        """The latents, (n, k); arguments as for `log_prob`."""
        return self._in_batches("encode", self._parts(x, given))

    def decode(self, z: Any, given: Any = None) -> np.ndarray:
        """Rows or images of latents (n, k)."""
        z = np.asarray(z, np.float32)
        return self._out(self._in_batches("decode", [z, *self._conditions(given, len(z))]))

    def sample(self, n: int, key: int = 0, temperature: float | None = None, given: Any = None) -> np.ndarray:
        """Draw n rows or images; of a posterior n for each observation, (n, d) for one (m,), (k, n, d) for (k, m).

        Args:
            n: how many.
            key: a seed; the same draws as those of flowknife with this key.
            temperature: scale of the latents; default 1, of images 0.7.
            given: conditions, one row for all or one for each; observations; or the number of a class.
        """
        about = self.about
        scale = jnp.asarray(about["sample_temperature"] if temperature is None else temperature, jnp.float32)
        if about["application"] == "invert":
            return self._sample_posterior(n, key, scale, given)
        parts, words = list(self._conditions(given, n)), jax.random.key(key)
        size = _bucket(n, about["programs"]["sample"]["most"])
        batches = -(-n // size)
        if about["application"] == "classify":
            label_key, words = jax.random.split(words)
            if given is None:
                prior = jnp.asarray(np.asarray(about["log_prior"], np.float32))
                codes = jax.random.categorical(label_key, prior, shape=(n,))
            else:
                codes = jnp.broadcast_to(jnp.asarray(given), n)
            parts = [np.asarray(jnp.resize(codes, batches * size), np.int32)]
        parts = parts or [np.zeros(n, np.int8)]  # of which the shape alone counts
        rows = [np.resize(part, (batches, size, *part.shape[1:])) for part in parts]
        keys = [jax.random.key_data(each) for each in jax.random.split(words, batches)]
        drawn = [self._run("sample", k, scale, *(part[i] for part in rows)) for i, k in enumerate(keys)]
        return self._out(np.concatenate([np.asarray(part) for part in drawn])[:n])

    # -- the same steps as in flowknife ------------------------------------------------------------------------------

    def _sample_posterior(self, n, key, scale, y):
        if y is None:
            raise ValueError("got a posterior and no observation; expected given=y")
        rows, single = self._conditions(y, None)[0], np.ndim(y) < 2
        size = _bucket(n)
        most = max(self.about["programs"]["sample"]["most"] // (size * len(self.about["names"])), 1)
        most = min(most, len(rows) if len(rows) == 1 or size > _bucket(1) else _bucket(1))
        drawn = []
        for i, start in enumerate(range(0, len(rows), most)):
            part = rows[start : start + most]
            whole = np.concatenate([part, np.repeat(part[:1], most - len(part), axis=0)])
            words = jax.random.key_data(jax.random.fold_in(jax.random.key(key), i))
            draws = self._run("sample", words, scale, np.zeros(size, np.int8), whole)
            drawn.append(np.asarray(draws)[: len(part), :n])
        found = self._out(np.concatenate(drawn))
        return found[0] if single else found

    def _parts(self, x, given):
        """The items, and what they are given, as the programs take them."""
        images = self.about["kind"] == "images"
        items = np.asarray(x, np.uint8) if images else self._inside("x", x).astype(np.float32)
        return [items, *self._conditions(given, len(items))]

    def _conditions(self, given, n):
        """Conditions as the programs take them, in a list; one row for all is repeated. n: None for any number."""
        about = self.about
        if about.get("given_classes"):
            if given is None:
                raise ValueError(f"got no class; expected given=0 to {about['given_classes'] - 1}")
            return [np.eye(about["given_classes"], dtype=np.float32)[np.broadcast_to(given, n)]]
        if "given" not in about["frames"]:
            return []
        if given is None:
            raise ValueError(f"got no condition; expected given=, values of {', '.join(about['given_names'])}")
        given = np.asarray(given, np.float64)
        given = given.reshape(-1, len(about["given_names"])) if given.ndim < 2 else given
        given = np.asarray(self._inside("given", given), np.float32)
        if about["application"] == "invert":
            given = np.clip(given, -1e30, 1e30)
        return [given if n is None else np.broadcast_to(given, (n, given.shape[1]))]

    def _frame(self, name):
        frame = self.about["frames"][name]
        origin, scale = np.array(frame["origin"]), np.array(frame["scale"])
        kept = np.setdiff1d(np.arange(len(origin)), np.array(frame["constant"], int))
        return origin, scale, kept

    def _inside(self, name, values):
        """Values in the frame of a program, in double precision."""
        origin, scale, kept = self._frame(name)
        with np.errstate(over="ignore", invalid="ignore"):
            return (np.asarray(values, np.float64)[..., kept] - origin[kept]) / scale[kept]

    def _out(self, rows):
        """What a program returns in the units of the data."""
        if self.about["kind"] == "images":
            return rows
        origin, scale, kept = self._frame("x")
        with np.errstate(over="ignore", invalid="ignore"):
            rows = rows.astype(np.float64) * scale[kept]
        whole = np.zeros((*rows.shape[:-1], len(origin)))
        whole[..., kept] = rows
        return whole + origin

    def _possible(self, x):
        """Whether columns that were constant in training have that value."""
        origin, _, kept = self._frame("x")
        fixed = np.setdiff1d(np.arange(len(origin)), kept)
        values, origin = np.asarray(x, np.float64)[..., fixed], origin[fixed]
        return (abs(values - origin) <= 4 * np.finfo(np.float64).eps * abs(origin)).all(axis=-1)

    def _supported(self, x):
        """Parameters as the program takes them, and whether the prior allows them."""
        low, high = (np.array(self.about[name], np.float32) for name in ("low", "high"))
        inside = self._inside("x", x)
        if self.about["framed"]:
            low, high = np.nextafter(low, np.float32(-np.inf)), np.nextafter(high, np.float32(np.inf))
            possible = self._possible(x)
        else:
            inside, possible = inside.astype(np.float32), True
        possible &= np.all((inside >= low) & (inside <= high), axis=-1)
        filling = np.array(self.about["inner"], np.float32)
        return np.where(possible[..., None], inside, filling).astype(np.float32), possible

    def _content(self, name):
        """The content of a file of the folder, as it was written."""
        content = (self.folder / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.about["files"].get(name):
            raise ValueError(f"got {self.folder / name}, which is damaged; expected its checksum; try to export again")
        return content

    def _run(self, name, *arguments):
        """The result of a program of the folder."""
        if name not in self._compiled:
            content = self._content(f"{name}.stablehlo")
            self._compiled[name] = jax.jit(jax.export.deserialize(bytearray(content)).call)
        return self._compiled[name](self._weights, *arguments)

    def _in_batches(self, name, parts):
        """The result of a program for items in batches, the last one padded with its first item."""
        program, count = self.about["programs"][name], len(parts[0])
        parts = [np.broadcast_to(part, (count, *part.shape[1:])) for part in parts]
        numbers = sum(part[:1].size for part in parts)
        fitting = 2 ** int(np.floor(np.log2(max(_NUMBERS_AT_ONCE / max(numbers, 1), 1))))
        size = min(_bucket(count, program["most"]), fitting)
        size = program.get("fixed") or max(size, program["least"])
        found = []
        for start in range(0, count, size):
            batch = [part[start : start + size] for part in parts]
            batch = [np.concatenate([own, np.repeat(own[:1], size - len(own), axis=0)]) for own in batch]
            found.append(np.asarray(self._run(name, *batch))[: count - start])
        return np.concatenate(found)


def _bucket(count, most=None):
    """The size of a batch, that of flowknife: 256 or a multiple of 1,024, at most `most`."""
    size = 256 if count <= 256 else -(-count // 1024) * 1024
    return size if most is None else min(size, most)


def main(arguments: Any = None) -> None:
    """The command line: arrays of a .npy file in, one out."""
    parser = argparse.ArgumentParser(description="Run an exported flow.")
    parser.add_argument("method", choices=["log_prob", "predict_proba", "encode", "decode", "sample"])
    parser.add_argument("data", help="rows, images or latents in a .npy file; of sample how many to draw")
    parser.add_argument("--given", help="conditions or observations in a .npy file")
    parser.add_argument("--key", type=int, default=0, help="the seed of sample")
    parser.add_argument("--out", required=True, help="the .npy file to write")
    asked = parser.parse_args(arguments)
    flow, given = Model(), {} if asked.given is None else {"given": np.load(asked.given)}
    if asked.method == "sample":
        found = flow.sample(int(asked.data), key=asked.key, **given)
    else:
        found = getattr(flow, asked.method)(np.load(asked.data), **given)
    np.save(asked.out, found)
    sys.stdout.write(f"wrote an array {found.shape} to {asked.out}\n")


if __name__ == "__main__":
    main()
