"""The model file and the run directory: what is written is what is read, and nothing else is ever built."""

import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from flowknife import nets, storage
from flowknife._files import is_run
from flowknife._record import FORMAT, DataRecord, Record, Stopped, TrainingRecord
from flowknife.architectures import coupling_flow
from flowknife.bijections import LU, ActNorm, Chain
from flowknife.errors import StorageError
from flowknife.inn import INN, Block
from flowknife.laws import ClassMixture, Data, Given, Noise, Normal, Pad, Padding, Pixels
from flowknife.storage import load_tree, read_history, read_model, read_run, save_tree, write_json, write_run
from tests.catalogue import ROWS, quick_jit


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def filled(make, seed=0):
    """What `make` builds, with random arrays in it, without computing anything."""
    rng = np.random.default_rng(seed)

    def fill(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        places = np.broadcast_to(np.arange(leaf.shape[-1]) if leaf.shape else 1, leaf.shape)  # a permutation
        values = rng.normal(size=leaf.shape) if leaf.dtype.kind == "f" else places
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map(fill, eqx.filter_eval_shape(make, jax.random.key(seed)))


def same(a, b):
    """Whether two trees are equal, types included; arrays are compared by numpy, which compiles nothing."""
    kinds = [[type(leaf) for leaf in jax.tree.leaves(tree)] for tree in (a, b)]
    plain = [jax.tree.map(lambda leaf: np.asarray(leaf) if eqx.is_array(leaf) else leaf, tree) for tree in (a, b)]
    return kinds[0] == kinds[1] and bool(eqx.tree_equal(*plain, typematch=True))


# -- the model file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_bijection_comes_back_as_it_was(row, tmp_path):
    bijection = filled(row.make)
    save_tree(tmp_path / "model", bijection)
    loaded = load_tree(tmp_path / "model")
    assert same(loaded, bijection)
    assert (loaded.shape, loaded.out_shape) == (bijection.shape, bijection.out_shape)


def test_a_loaded_model_gives_the_same_numbers_and_is_not_fitted_again(tmp_path):
    flow = Chain([ActNorm(3), coupling_flow(3, cond_dim=2, layers=2, width=4, depth=1, key=0)])
    inn = INN(
        [Block("x", 2), Block("e", 1, Noise(0.5, added_to="y"))],
        [Block("y", 1, Given(0.2)), Block("z", 2)],
        flow,
        cond=[Block("c", 2)],
    )
    rng = np.random.default_rng(0)
    x, y, c = (rng.normal(3.0, 2.0, (20, n)).astype(np.float32) for n in (2, 1, 2))
    initialise = quick_jit(lambda inn, x: inn.initialise(x, y=y, c=c, key=0))
    use = quick_jit(lambda inn: (inn.log_prob(x, y=y, c=c, key=1), inn.sample(0, 5, y=y, c=c)))
    inn = initialise(inn, x)
    save_tree(tmp_path / "model", inn)
    loaded = load_tree(tmp_path / "model")
    assert all(np.array_equal(a, b) for a, b in zip(use(inn), use(loaded), strict=True))
    assert eqx.tree_equal(initialise(loaded, x + 5), inn)


@pytest.mark.parametrize(
    "module",
    [
        Normal(),
        Given(0.3),
        Padding(0.2),
        ClassMixture(3, 4),
        Data(),
        Pixels(5),
        Noise(2.0, added_to="y"),
        Pad(),
        nets.ConvResNet((4, 4, 1), 3, key=0),
        nets.ResidualMLP((2,), (3,), (1,), width=4, key=0),
        Block("x", (2, 3)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_every_other_module_comes_back_as_it_was(module, tmp_path):
    save_tree(tmp_path / "model", module)
    assert same(load_tree(tmp_path / "model"), module)


def test_plain_values_and_arrays_of_all_kinds_come_back(tmp_path):
    tree = {
        "none": None,
        "flag": True,
        "whole": 3,
        "number": 0.1,
        "words": "µ = 1\n",
        "tuple": (1, (2.5, "x"), ()),
        "empty": {},
        "bools": jnp.asarray([True, False]),
        "integers": jnp.arange(3),
        "nothing": jnp.zeros((0, 3)),
        "strided": jnp.arange(6.0).reshape(2, 3).T,
        "infinite": float("inf"),
    }
    save_tree(tmp_path / "model", {**tree, "numpy": np.float64(0.25)})
    loaded = load_tree(tmp_path / "model")
    assert loaded.pop("numpy") == 0.25
    assert eqx.tree_equal(loaded, tree, typematch=True)


def test_an_array_without_axes_comes_back(tmp_path):
    save_tree(tmp_path / "model", jnp.asarray(2.0))
    assert eqx.tree_equal(load_tree(tmp_path / "model"), jnp.asarray(2.0), typematch=True)


def test_names_with_a_slash_stay_apart(tmp_path):
    save_tree(tmp_path / "model", {"a/b": jnp.zeros(2), "a": {"b": jnp.ones(2)}})
    loaded = load_tree(tmp_path / "model")
    np.testing.assert_array_equal(loaded["a/b"], [0, 0])
    np.testing.assert_array_equal(loaded["a"]["b"], [1, 1])


class LU2(LU):
    """A class of somebody else's."""


@pytest.mark.parametrize("tree", [eqx.nn.Linear(2, 2, key=jax.random.key(0)), {"a": [LU2(2)]}, {"f": print}, {1, 2}])
def test_what_a_file_cannot_name_is_not_saved(tree, tmp_path):
    with pytest.raises(StorageError) as caught:
        save_tree(tmp_path / "model", tree)
    assert "expected" in one_line(caught)
    assert list(tmp_path.iterdir()) == []


def test_a_class_with_the_name_of_ours_is_not_ours(tmp_path):
    foreign = type("LU", (LU,), {})(2, key=0)
    with pytest.raises(StorageError):
        save_tree(tmp_path / "model", foreign)


# -- files that are damaged or foreign --------------------------------------------------------------------------------


def write_header(path, header, arrays=None):
    """A safetensors file with a header of any kind."""
    text = header if isinstance(header, str) else json.dumps(header)
    safetensors.numpy.save_file(arrays or {"/w": np.zeros(2)}, path, metadata={"flowknife": text})
    return path


def refused(path):
    with pytest.raises(StorageError) as caught:
        load_tree(path)
    return one_line(caught)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model"
    save_tree(path, {"lu": LU(3, key=0), "w": jnp.arange(10.0)})
    return path


def test_a_truncated_file_is_refused(saved):
    whole = saved.read_bytes()
    for size in np.linspace(0, len(whole) - 1, 40).astype(int):
        saved.write_bytes(whole[:size])
        assert "damaged" in refused(saved)


def test_a_file_of_another_kind_is_refused(tmp_path):
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    assert "foreign" in refused(foreign)
    safetensors.numpy.save_file({"w": np.zeros(3)}, foreign)
    assert "without a flowknife header" in refused(foreign)
    assert "does not exist" in refused(tmp_path / "nothing")
    refused(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        "not json",
        "[]",
        "1",
        "{}",
        {"format": FORMAT},
        {"format": "one", "tree": None},
        {"format": FORMAT, "tree": {"array": "/other"}},
        {"format": FORMAT, "tree": {"array": 3}},
        {"format": FORMAT, "tree": {"dict": [1, 2]}},
        {"format": FORMAT, "tree": {}},
        {"format": FORMAT, "tree": {"class": "LU"}},
        {"format": FORMAT, "tree": {"class": ["LU"], "fields": {}}},
        {"format": FORMAT, "tree": {"class": "LU", "fields": None}},
    ],
    ids=str,
)
def test_a_damaged_header_is_refused(header, tmp_path):
    refused(write_header(tmp_path / "model", header))


def test_a_deep_nest_is_refused(tmp_path):
    refused(write_header(tmp_path / "model", f'{{"format": {FORMAT}, "tree": ' + "[" * 100_000 + "]" * 100_000 + "}"))


def test_an_older_format_is_named(tmp_path):
    message = refused(write_header(tmp_path / "model", {"format": 1, "tree": None}))
    assert "format 1" in message and "fitting again" in message


def test_a_newer_format_asks_for_a_newer_version(tmp_path):
    message = refused(write_header(tmp_path / "model", {"format": FORMAT + 1, "tree": None}))
    assert "newer" in message


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_wrong_fields_are_refused(change, tmp_path):
    fields = {"bijections": [], "surprise": 2.0} if change == "extra" else {}
    message = refused(
        write_header(tmp_path / "model", {"format": FORMAT, "tree": {"class": "Chain", "fields": fields}})
    )
    assert "Chain" in message
    assert "bijections" in message


def test_a_field_that_an_older_version_did_not_know_has_its_default(tmp_path):
    path = write_header(tmp_path / "model", {"format": FORMAT, "tree": {"class": "Pixels", "fields": {"bits": 5}}})
    assert storage.load_tree(path) == Pixels(5)


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "Linear", "jax", "as_key", "InputError", "partial", "__class__", "Bijection", "Law"],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_file_cannot_name_other_code(name, inside, tmp_path, monkeypatch):
    def explode(*args, **kwargs):
        raise AssertionError("code of the file was run")

    monkeypatch.setattr(os, "system", explode)
    node = {"class": name, "fields": {"command": "echo"}}
    if inside:
        node = {"class": "Given", "fields": {"scale": node}}
    assert name in refused(write_header(tmp_path / "model", {"format": FORMAT, "tree": node}))


def test_loading_runs_no_constructor(tmp_path, monkeypatch):
    def explode(*args, **kwargs):
        raise AssertionError("a constructor was run")

    save_tree(tmp_path / "model", LU(3, key=0))
    monkeypatch.setattr(LU, "__init__", explode)
    assert load_tree(tmp_path / "model").shape == (3,)


# -- writing ----------------------------------------------------------------------------------------------------------


def test_a_failing_write_leaves_the_old_file_and_nothing_else(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(arrays, path, metadata):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(StorageError) as caught:
        save_tree(saved, {"w": jnp.zeros(3)})
    assert "No space left" in one_line(caught)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_failing_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught:
        save_tree(tmp_path / "file" / "model", {})
    assert "nothing can be written" in one_line(caught)


def test_folders_are_made_and_files_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "model"
    save_tree(path, {"v": 1})
    save_tree(path, {"v": 2})
    assert load_tree(path) == {"v": 2}
    assert load_tree(str(path)) == {"v": 2}


def test_json_has_plain_numbers_only(tmp_path):
    value = {
        "array": jnp.asarray([1.5, np.nan]),
        "numpy": np.float32(0.5),
        "infinite": float("-inf"),
        "path": tmp_path,
        1: (True, None, "ü"),
    }
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "array": [1.5, None],
        "numpy": 0.5,
        "infinite": None,
        "path": str(tmp_path),
        "1": [True, None, "ü"],
    }


# -- run directories --------------------------------------------------------------------------------------------------

RECORD = Record[dict[str, Any]](
    application="density",
    config={"seed": 3},
    used={"seed": 3, "steps": 10},
    data=DataRecord(kind="rows", rows=20, source="moons", names=("a", "b"), classes=(True, 2, 2.5, "c")),
    training=TrainingRecord(steps=10, seconds=0.5, stopped=Stopped.PATIENCE, part=(1, 2)),
    metrics={"nll": 1.25, "auroc": None},
    notes=("heavy tails",),
    recipe="small",
)
HISTORY = {"step": [100, 200], "train": [3.25, 2.5], "validation": [float("nan"), 1e-9]}


def test_a_run_directory_is_read_as_written(tmp_path):
    folder = write_run(tmp_path / "runs" / "one", RECORD, {"w": jnp.ones(3)}, HISTORY)
    assert {path.name for path in folder.iterdir()} == {"run.json", "model.safetensors", "history.csv"}
    record = read_run(folder)
    assert record.model_copy(update={"files": {}}).model_dump() == RECORD.model_dump()
    assert set(record.files) == {"model.safetensors", "history.csv"}
    assert [type(name) for name in record.data.classes] == [bool, int, float, str]
    assert {"flowknife", "python", "jax", "equinox", "optax", "numpy"} <= set(record.versions)
    assert record.created.tzinfo is not None
    np.testing.assert_array_equal(load_tree(folder / "model.safetensors")["w"], np.ones(3))
    history = read_history(folder, record)
    assert list(history) == list(HISTORY)
    np.testing.assert_array_equal(list(history.values()), list(HISTORY.values()))


@pytest.mark.parametrize("history", [{"step": [], "train": []}, {}], ids=["no rows", "no columns"])
def test_a_history_may_be_empty(history, tmp_path):
    folder = write_run(tmp_path / "run", RECORD, {}, history)
    assert read_history(folder, read_run(folder)) == history


def test_a_run_without_history_has_an_empty_one(tmp_path):
    assert read_history(tmp_path, RECORD) == {}


def test_run_json_is_written_last(tmp_path):
    with pytest.raises(StorageError):
        write_run(tmp_path / "run", RECORD, {"f": print}, HISTORY)
    with pytest.raises(ValueError, match="zip"):
        write_run(tmp_path / "run", RECORD, {}, {"step": [1], "train": []})
    assert not (tmp_path / "run" / "run.json").exists()


class Killed(BaseException):
    """The end of a process, after which nothing is cleaned up."""


def run_of(folder):
    """The seed in the record of a run, and the number in its model."""
    record = read_run(folder)
    assert read_history(folder, record) == {"seed": [float(record.config["seed"])]}
    return record.config["seed"], float(read_model(folder, record)["w"])


@pytest.mark.parametrize("old", [True, False], ids=["over a run", "into a new folder"])
def test_a_kill_at_any_moment_leaves_the_old_run_or_the_new_one(old, tmp_path, monkeypatch):
    def write(folder, seed):
        own = RECORD.model_copy(update={"config": {"seed": seed}})
        return write_run(folder, own, {"w": jnp.asarray(float(seed))}, {"seed": [seed]})

    with monkeypatch.context() as patch:
        calls = []

        def counted(function):
            def call(*args, **kwargs):
                calls.append(function)
                if len(calls) == last:
                    raise Killed
                return function(*args, **kwargs)

            return call

        for name in ("replace", "rename", "rmdir", "mkdir", "write_text"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        patch.setattr(storage.shutil, "rmtree", lambda *args, **kwargs: None)
        outcomes = []
        for last in range(1, 40):
            folder = tmp_path / str(last)
            if old:
                calls[:] = [None] * 100  # nothing is killed here
                write(folder, 1)
            calls.clear()
            try:
                write(folder, 2)
            except Killed:
                outcomes.append(run_of(folder) if is_run(folder) else None)
            else:
                break
            calls[:] = [None] * 100
            write(folder, 3)  # whatever was left is no hindrance
            assert run_of(folder) == (3, 3.0)
    before = (1, 1.0) if old else None
    assert run_of(folder) == (2, 2.0)
    assert set(outcomes) == {before, (2, 2.0)} and outcomes == sorted(outcomes, key=lambda one: one != before)


@pytest.mark.parametrize("name", ["model.safetensors", "history.csv"])
def test_a_changed_bit_of_a_file_is_noticed(name, tmp_path):
    folder = write_run(tmp_path / "run", RECORD, {"w": jnp.arange(8.0)}, HISTORY)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    record = read_run(folder)
    with pytest.raises(StorageError) as caught:
        (read_history if name == "history.csv" else read_model)(folder, record)
    assert "checksum" in one_line(caught) and name in one_line(caught)


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644)])
def test_the_mode_of_a_file_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        folder = write_run(tmp_path / "run", RECORD, {}, HISTORY)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir() if path.is_file()} == {mode}


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        '{"application": "dens',
        "[]",
        "{}",
        '{"application": "density", "format": 99}',
        '{"application": "density", "format": "new"}',
        b"\xff\xfe\x00",
    ],
)
def test_a_run_that_cannot_be_read_says_so_in_one_line(text, tmp_path):
    if text is not None:
        (tmp_path / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StorageError) as caught:
        read_run(tmp_path)
    assert tmp_path.name in one_line(caught)


def test_a_run_that_is_not_there_says_so_in_one_line(tmp_path):
    with pytest.raises(StorageError) as caught:
        read_run(tmp_path / "nothing")
    assert "not a directory" in one_line(caught)


def test_a_deeply_nested_record_says_so_in_one_line(tmp_path):
    for text in ("[" * 100_000, '{"application": ' + "[" * 100_000 + "]" * 100_000 + "}"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(StorageError) as caught:
            read_run(tmp_path)
        assert "cannot be read" in one_line(caught)


@pytest.mark.parametrize("old", [1, 2])
def test_a_run_of_an_older_format_is_named(old, tmp_path):
    write_json(tmp_path / "run.json", {"format": old, "application": "density", "facts": {}})
    with pytest.raises(StorageError) as caught:
        read_run(tmp_path)
    assert f"of format {old}" in one_line(caught) and "fitting again" in one_line(caught)


def places_in(value, place=()):
    """Where the values of nested JSON are."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*place, key)
        yield from places_in(item, (*place, key))


def with_value(record, place, value):
    """A copy of nested JSON with another value in one place; without it, if the value is `...`."""
    record = json.loads(json.dumps(record))
    inside = record
    for key in place[:-1]:
        inside = inside[key]
    if value is ...:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    return record


def test_whatever_is_written_into_a_record_only_a_storage_error_comes_out(tmp_path):
    folder = write_run(tmp_path / "run", RECORD, {}, HISTORY)
    whole = json.loads((folder / "run.json").read_text())
    found = {True: 0, False: 0}
    for place in places_in(whole):
        for value in (..., None, True, -7, 1e300, "word", [], [[1]], {}, {"a": {"b": None}}):
            write_json(folder / "run.json", with_value(whole, place, value))
            try:
                read_run(folder)
            except StorageError as error:
                assert "\n" not in str(error) and str(folder) in str(error)
                found[False] += 1
            else:
                found[True] += 1
    assert found[False] > 200 and found[True] > 20


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("data", "rows"), "20"),
        (("data", "rows"), ...),
        (("data", "kind"), "words"),
        (("data", "surprise"), 1),
        (("training", "stopped"), "tired"),
        (("training", "steps"), 1.5),
        (("training",), ...),
        (("config",), ...),
        (("created",), "yesterday"),
        (("notes",), "one"),
        (("metrics", "nll"), "small"),
        (("versions",), []),
    ],
)
def test_a_wrong_field_of_a_record_is_named(place, value, tmp_path):
    folder = write_run(tmp_path / "run", RECORD, {}, HISTORY)
    write_json(folder / "run.json", with_value(json.loads((folder / "run.json").read_text()), place, value))
    with pytest.raises(StorageError) as caught:
        read_run(folder)
    assert place[-1] in one_line(caught)


def test_every_reason_to_stop_is_a_sentence():
    for reason in Stopped:
        found = TrainingRecord(steps=500, seconds=1.0, stopped=reason).sentence
        assert found.startswith(reason.sentence) and len(found.split()) > 3
    assert (
        TrainingRecord(steps=3, seconds=1.0, stopped=Stopped.INTERRUPTED).sentence
        == "training was interrupted at step 3"
    )
    part = TrainingRecord(steps=3, seconds=1.0, stopped=Stopped.INTERRUPTED, part=(2, 4))
    assert part.partial and part.sentence == "training was interrupted in part 2 of 4"
    assert "takes at least 100" in TrainingRecord(steps=99, seconds=1.0, stopped=Stopped.BUDGET).sentence
