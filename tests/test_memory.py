"""Files that are made to fill the memory end in one line, in a process that may take one gibibyte more than it has.

`python -m tests.test_memory FOLDER` opens them under that limit.
"""

import gzip
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

import flowknife as fk
from flowknife.errors import FlowknifeError
from tests import fuzz

resource = pytest.importorskip("resource")

ROOM = 2**30
SECONDS = 60  # of the clock, after which a file is cut off


def zipped(folder, name, member, blocks):
    """An .npz whose one array is packed a thousandfold."""
    import zipfile

    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (blocks * 2**17, 1)})
    with (
        zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(member, "w", force_zip64=True) as stream,
    ):
        stream.write(head.getvalue())
        for _ in range(blocks):
            stream.write(bytes(2**20))


def png(width, height):
    """A PNG whose pixels are all 0."""
    packed = zlib.compressobj(1)
    row = bytes(1 + 4 * width)
    data = b"".join(packed.compress(row) for _ in range(height)) + packed.flush()
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def tensors(head, size=None):
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + bytes(64)


def write_all(folder):
    """Every hostile file; runs and images in folders of their own."""
    folder.mkdir(exist_ok=True)
    for name in ("endless.csv", "endless.csv.gz", "endless.npy", "endless.npz", "endless.yaml", "endless.parquet"):
        (folder / name).symlink_to("/dev/zero")
    # members of a gzip file follow each other
    (folder / "bomb.csv.gz").write_bytes(gzip.compress(b"a,b\n") + gzip.compress(b"0,0\n" * 2**18) * 4000)
    with (folder / "cell.csv").open("wb") as stream:
        stream.write(b"a,label\n1,")
        for _ in range(200):
            stream.write(b"y" * 2**20)
        stream.write(b"\n2,x\n")
    (folder / "quoted.csv").write_bytes(b'a,label\n1,"' + b"y\n" * 2**25 + b'"\n2,x\n')
    (folder / "long.csv").write_bytes(b"a,label\n" + b"1,x\n" * 50_000 + b"2," + b"y" * 120_000 + b"\n")
    zipped(folder, "bomb.npz", "x.npy", 1500)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2)})
    (folder / "promise.npy").write_bytes(head.getvalue() + bytes(1000))
    with (folder / "sparse.npy").open("wb") as stream:
        stream.write(head.getvalue())
        stream.truncate(2**43)
    (folder / "bomb.yaml").write_text(
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
        )
    )
    (folder / "images").mkdir()
    content = png(9000, 9000)
    for i in range(4):
        (folder / "images" / f"{i}.png").write_bytes(content)
    for name, model in {
        "promise": tensors({"__metadata__": {"flowknife": "{}"}, "/w": _tensor([2**40])}),
        "long": tensors({}, 2**63),
        "wide": tensors({"__metadata__": {"flowknife": "x" * 2**25}}),
        "endless": None,
        "sparse": None,
    }.items():
        run = fuzz.write_small(fuzz.small_runs()["density"], folder / name)
        place = run / "model.safetensors"
        place.unlink()
        if name == "endless":
            place.symlink_to("/dev/zero")
        elif name == "sparse":
            with place.open("wb") as stream:
                stream.write(struct.pack("<Q", 2**40) + b'{"')
                stream.truncate(2**43)
        else:
            place.write_bytes(model)
            record = json.loads((run / "run.json").read_text())
            record["files"][place.name] = hashlib.sha256(model).hexdigest()  # as whoever does this on purpose
            (run / "run.json").write_text(json.dumps(record))
    for name, part in {"no-record": "run.json", "no-history": "history.csv"}.items():
        run = fuzz.write_small(fuzz.small_runs()["density"], folder / name)
        (run / part).unlink()
        (run / part).symlink_to("/dev/zero")


def _tensor(shape):
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * int(np.prod(shape))]}


RUNS = ("promise", "long", "wide", "endless", "sparse", "no-record", "no-history")
LABELLED = ("cell.csv", "quoted.csv", "long.csv")
TABLES = (
    *("endless.csv", "endless.csv.gz", "endless.npy", "endless.npz", "endless.parquet"),
    *("bomb.csv.gz", "bomb.npz", "promise.npy", "sparse.npy"),
    *LABELLED,
)
SETTINGS = ("endless.yaml", "bomb.yaml")
READ = {"long.csv"}  # a table: one label is long, but honest


def open_all(folder):
    """Open every file: its name, how that ended ("read", "refused" or what went wrong), and the memory it took."""
    from flowknife.cli._settings import configured
    from flowknife.data import load_images, load_table
    from flowknife.data.tables import read_columns

    def table(path):
        return read_columns(path, keep=("label",)) if path.name in LABELLED else load_table(path)

    uses = {f"run {name}": lambda name=name: fk.load(folder / name) for name in RUNS}
    uses |= {name: lambda name=name: table(folder / name) for name in TABLES}
    uses |= {name: lambda name=name: configured(fk.DensityConfig, folder / name, []) for name in SETTINGS}
    uses["images"] = lambda: load_images(folder / "images", 8)
    for name, use in uses.items():
        fuzz.peak_memory()
        before = fuzz.peak_memory()
        try:
            with fuzz.limited(SECONDS):
                use()
            end = "read"
        except FlowknifeError as error:
            end = "refused" if str(error).isprintable() else f"not one printable line: {str(error)[:100]!r}"
        except (Exception, fuzz.Hang) as error:
            end = f"{type(error).__name__}: {error}"
        yield name, end, fuzz.peak_memory() - before


def main(folder: Path) -> None:
    """Open every file under the limit, after a whole run, with which all is imported that is needed."""
    fk.load(fuzz.write_small(fuzz.small_runs()["density"], folder / "whole"))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, resource.RLIM_INFINITY))
    print(json.dumps(list(open_all(folder))))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited and measured as on Linux")
def test_hostile_files_end_in_one_line_within_a_gibibyte(tmp_path):
    write_all(tmp_path / "files")
    environment = {**os.environ, "PYTHONPATH": str(Path(fk.__file__).parents[1]), "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_memory", tmp_path / "files"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=Path(fk.__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name, end, memory in found:
        print(f"{name}: {end}, {memory / 2**20:.0f} MiB")
    assert {name: end for name, end, _ in found if end != "refused"} == dict.fromkeys(READ, "read")
    assert len(found) == len(RUNS) + len(TABLES) + len(SETTINGS) + 1
    assert max(memory for *_, memory in found) < ROOM


if __name__ == "__main__":
    main(Path(sys.argv[1]))
