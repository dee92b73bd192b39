"""Images of a store, here an S3 server on this machine: the same as of a folder, patiently read, and only once."""

import contextlib
import csv
import hashlib
import io
import logging
import sys
import threading

import equinox as eqx
import jax
import numpy as np
import pytest
from PIL import Image

import flowknife as fk
from flowknife.data import _stores, find_images, fingerprint, load_images, usual_side, write_folder
from flowknife.errors import InputError, StorageError
from flowknife.train import StoredRows
from tests.command import call, rows_of

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

TINY = {"architecture": "glow", "levels": 1, "steps_per_level": 1, "width": 8, "image_size": 8}
TINY |= {"train": {"steps": 6, "batch_size": 16, "evaluate_every": 3}}


class Requests:
    """A WSGI application before another one: it counts requests, and fails some of them."""

    def __init__(self, app):
        self.app, self.seen, self.fail = app, [], lambda number, path: False

    def __call__(self, environ, start_response):
        self.seen.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        if self.fail(len(self.seen), environ["PATH_INFO"]):
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]
        return self.app(environ, start_response)

    def read(self):
        """The objects that were asked for since the last time."""
        objects = [path for method, path in self.seen if method in ("GET", "HEAD") and path.count("/") > 1]
        self.seen.clear()
        return sorted(path.split("/", 2)[2] for path in objects if not path.endswith("/"))


@pytest.fixture(scope="module")
def server():
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    requests = Requests(DomainDispatcherApplication(create_backend_app))
    http = make_server("127.0.0.1", 0, requests, threaded=True)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{http.server_port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")  # the patience tested is that of flowknife
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield requests
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def bucket(server, tmp_path, monkeypatch):
    """Put objects into a new bucket, straight into the server's memory; return its address."""
    import s3fs
    from moto.s3.models import s3_backends

    s3fs.S3FileSystem.clear_instance_cache()
    backend = s3_backends["123456789012"]["aws"]
    name = "b" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]
    backend.create_bucket(name, "us-east-1")
    monkeypatch.setenv("FLOWKNIFE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_stores, "_FIRST_DELAY", 0.0)
    monkeypatch.setattr(server, "fail", lambda number, path: False)
    server.seen.clear()

    def put(objects, prefix="images"):
        for key, value in objects.items():
            backend.put_object(name, f"{prefix}/{key}", value)
        return f"s3://{name}/{prefix}"

    put.delete = lambda key: backend.delete_object(name, key)
    return put


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path):
    """Thirty small images in two subfolders, grey and coloured, and files that are none."""
    place = tmp_path / "folder"
    x = np.random.default_rng(0).integers(0, 256, (30, 9, 9, 3), dtype=np.uint8)
    write_folder(x, place, labels=np.where(np.arange(30) < 12, "a", "b"))
    Image.fromarray(x[0, ..., 0]).save(place / "a" / "grey [1]*?.png")
    (place / "b" / "cut.png").write_bytes((place / "a" / "000000.png").read_bytes()[:60])
    (place / "b" / "empty.png").touch()
    (place / "notes.txt").write_text("no image")
    (place / ".hidden").mkdir()
    Image.fromarray(x[0]).save(place / ".hidden" / "x.png")
    return place


def assert_same(a, b):
    np.testing.assert_array_equal(a.pixels, b.pixels)
    assert (a.names, a.folders, a.skipped) == (b.names, b.folders, b.skipped)


def test_a_store_gives_what_the_folder_gives(bucket, folder):
    url = bucket(contents(folder))
    progress = []
    there = load_images(url, 8, on_progress=lambda done, total: progress.append((done, total)))
    assert_same(there, load_images(folder, 8))
    assert dict(there.skipped) == {
        "b/cut.png": "damaged or truncated (OSError)",
        "b/empty.png": "empty file",
        "notes.txt": "not an image",
    }
    assert progress == [(i + 1, 33) for i in range(33)]
    assert_same(load_images(url + "/", (6, 8), limit=7), load_images(folder, (6, 8), limit=7))
    assert load_images(url, 8, channels=1).pixels.shape == (31, 8, 8, 1)
    assert usual_side(url) == usual_side(folder) == 9
    assert_same(load_images(find_images(url), 8), there)


def test_the_second_run_reads_nothing_but_the_listing(bucket, folder, server):
    url = bucket(contents(folder))
    first = load_images(url, 8)
    side = usual_side(url)
    assert len(server.read()) == 2 * 32  # the empty file is known to be empty
    assert_same(load_images(url, 8), first)
    assert usual_side(url) == side
    assert server.read() == []
    # what is new or has changed is read, what is gone is left out
    changed = contents(folder)
    changed["a/000003.png"], changed["c/new.png"] = changed["a/000001.png"], changed["a/000002.png"]
    bucket({name: changed[name] for name in ("a/000003.png", "c/new.png")})
    bucket.delete(f"images/{'b/cut.png'}")
    again = load_images(url, 8)
    assert server.read() == ["images/a/000003.png", "images/c/new.png"]
    np.testing.assert_array_equal(again.pixels[3], first.pixels[1])
    np.testing.assert_array_equal(again.pixels[-1], first.pixels[2])
    np.testing.assert_array_equal(again.pixels[4:-1], first.pixels[4:])
    assert again.names[-1] == "c/new.png" and "b/cut.png" not in dict(again.skipped)


def test_a_run_that_was_killed_is_taken_up(bucket, folder, server, monkeypatch):
    from flowknife.data import _cache, images

    url = bucket(contents(folder))
    monkeypatch.setattr(_cache, "_FLUSH_EVERY", 4)
    monkeypatch.setattr(images, "_BATCH_FILES", 8)

    def killed(done, total):
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_images(url, 8, on_progress=killed)
    server.seen.clear()
    (journal,) = (folder.parent / "cache" / "images").rglob("*.csv")
    with journal.open(newline="") as stream:
        told = list(csv.reader(stream))
    assert len(told) == 16
    journal.write_bytes(journal.read_bytes()[:-3])  # the last line is half there
    assert_same(load_images(url, 8), load_images(folder, 8))
    assert len(server.read()) == 33 - 1 - 15


def test_every_page_of_a_listing_is_read(bucket, server):
    tiny = _png(np.full((8, 8), 7, np.uint8))
    url = bucket({f"{i % 3}/{i:05d}.png": tiny for i in range(2500)})
    found = find_images(url)
    assert len(server.seen) == 3 and server.read() == []  # a page has 1000 keys
    names = sorted(f"{i % 3}/{i:05d}.png" for i in range(2500))
    assert [item.name for item in found.candidates] == names
    images = load_images(found, 8, limit=10)
    assert images.names == tuple(names[i * 250] for i in range(10)) and np.all(images.pixels == 7)


def _png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def test_one_failure_in_ten_does_no_harm(bucket, folder, server, monkeypatch):
    url = bucket(contents(folder))
    monkeypatch.setattr(server, "fail", lambda number, path: number % 10 in (1, 5))  # the listing's first try, too
    assert_same(load_images(url, 8), load_images(folder, 8))
    assert len(server.seen) > 36


def test_what_fails_for_good_is_skipped_and_tried_again_next_time(bucket, folder, server, monkeypatch):
    url = bucket(contents(folder))
    monkeypatch.setattr(server, "fail", lambda number, path: path.endswith("a/000005.png"))
    images = load_images(url, 8)
    reason = dict(images.skipped)["a/000005.png"]
    assert reason.startswith("cannot be read (") and "\n" not in reason
    assert len(images) == 30
    assert server.read().count("images/a/000005.png") == _stores._ATTEMPTS
    monkeypatch.setattr(server, "fail", lambda number, path: False)
    assert_same(load_images(url, 8), load_images(folder, 8))
    assert server.read() == ["images/a/000005.png"]


def test_pauses_grow(bucket, folder, server, monkeypatch):
    pauses = []
    monkeypatch.setattr(_stores, "_FIRST_DELAY", 0.2)
    monkeypatch.setattr(_stores.time, "sleep", pauses.append)
    url = bucket({"only.png": contents(folder)["a/000000.png"]})
    monkeypatch.setattr(server, "fail", lambda number, path: path.endswith("only.png"))
    with pytest.raises(InputError, match="no usable image"):
        load_images(url, 8)
    assert len(pauses) == _stores._ATTEMPTS - 1
    assert all(0.5 * 0.2 * 2**k <= pause <= 1.5 * 0.2 * 2**k for k, pause in enumerate(pauses))


def weights(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(model.model, eqx.is_array))]


@pytest.mark.slow
def test_a_store_and_a_folder_train_the_same_model(bucket, folder, monkeypatch):
    """The images of the folder are in memory, those of the store, larger than what is allowed, on disk."""
    url = bucket(contents(folder))
    read = []
    asked = StoredRows.__getitem__
    monkeypatch.setattr(StoredRows, "__getitem__", lambda self, rows: read.append(rows) or asked(self, rows))
    here = fk.images(folder, **TINY, key=0, show_progress=False)
    assert read == []
    monkeypatch.setenv("FLOWKNIFE_MAX_MEMORY", "1000")
    there = fk.images(url, **TINY, key=0, show_progress=False)
    assert any(np.size(rows) == 3 * 16 for rows in read)  # the three steps of a round
    for a, b in zip(weights(here), weights(there), strict=True):
        np.testing.assert_array_equal(a, b)
    assert there.record.data.fingerprint == here.record.data.fingerprint and there.skipped == here.skipped


def test_the_command_line_takes_addresses(bucket, folder, tmp_path):
    url = bucket(contents(folder))
    settings = [f"{name}={value}" for name, value in TINY.items() if name != "train"]
    settings += [f"train.{name}={value}" for name, value in TINY["train"].items()]
    result = call("fit", "images", url, "--out", tmp_path / "run", *(word for s in settings for word in ("-s", s)))
    assert f"score {tmp_path / 'run'} new --out scores.csv" in result.stdout
    assert {row["path"] for row in rows_of(tmp_path / "run" / "skipped.csv")} == {
        "b/cut.png", "b/empty.png", "notes.txt",
    }  # fmt: skip
    call("score", tmp_path / "run", url, "--out", tmp_path / "scores.csv")
    assert sorted(row["path"] for row in rows_of(tmp_path / "scores.csv")) == list(load_images(folder, 8).names)


def refusal(source, **options):
    with pytest.raises(InputError) as caught:
        load_images(source, 8, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals_are_one_line(bucket, folder, server, monkeypatch):
    url = bucket(contents(folder))
    bucket_url = url.rsplit("/", 1)[0]
    assert "empty folder" in refusal(f"{bucket_url}/nothing/here")
    assert "no folder 's3://no-such-bucket/x'" in refusal("s3://no-such-bucket/x")
    assert "got the file" in refusal(f"{url}/a/000000.png")
    assert "not known" in refusal("nonsense://a/b")
    assert "as text, not as Path" in refusal("s3:/bucket/folder")
    assert "address of their folder" in refusal([f"{url}/a/000000.png"])
    monkeypatch.setattr(server, "fail", lambda number, path: True)
    assert "cannot be listed" in refusal(url)


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert refusal("s3://bucket/folder").endswith("try pip install 'flowknife[s3]'")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    assert refusal("s3://bucket/folder").endswith("try pip install 'flowknife[s3]'")


def test_a_cache_that_cannot_be_written_is_one_line(bucket, folder, tmp_path, monkeypatch):
    url = bucket(contents(folder))
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLOWKNIFE_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="FLOWKNIFE_CACHE=another/folder"):
        load_images(url, 8)


def test_other_stores_will_do(folder, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("FLOWKNIFE_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/images/{name}": content for name, content in contents(folder).items()})
    with contextlib.ExitStack() as stack:
        stack.callback(memory.rm, "/images", recursive=True)
        assert_same(load_images("memory://images", 8), load_images(folder, 8))
    assert_same(load_images(f"file://{folder}", 8), load_images(folder, 8))
    assert fingerprint(load_images(f"file://{folder}", 8)) == fingerprint(load_images(folder, 8))
