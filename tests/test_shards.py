"""Scores and draws in shards: their union is the whole, and nothing is merged that is missing, double or foreign."""

import json

import numpy as np
import pytest
from command import call, refused, rows_of

import flowknife as fk
from flowknife.cli._shards import Shard, shard_of
from flowknife.data import save_table, write_folder
from flowknife.errors import InputError


def test_shards_are_written_or_told_by_a_cluster():
    assert shard_of("2/4", {}) == (2, 4) and shard_of(None, {}) is None
    assert shard_of("auto", {"AWS_BATCH_JOB_ARRAY_INDEX": "0", "AWS_BATCH_JOB_ARRAY_SIZE": "8"}) == (1, 8)
    slurm = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert shard_of("auto", slurm) == (3, 4)
    assert shard_of("auto/4", {"JOB_COMPLETION_INDEX": "3"}) == (4, 4)
    for text, words in {"0/4": "1/4", "5/4": "4/4", "2": "I/N", "auto": "array job", "a/b": "I/N"}.items():
        with pytest.raises(InputError, match=words):
            shard_of(text, {})
    with pytest.raises(InputError, match="number of parts"):
        shard_of("auto", {"JOB_COMPLETION_INDEX": "3"})


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """A run, and a table of which one row has no number."""
    folder = tmp_path_factory.mktemp("moons")
    x = fk.data.TOYS["moons"].sample(400, key=0)
    small = {"layers": 1, "width": 8, "depth": 1, "scalar": "affine", "train": {"steps": 20}}
    fk.density(x, names=["a", "b"], **small, show_progress=False).save(folder / "run")
    rows = np.asarray(fk.data.TOYS["moons"].sample(203, key=1), float)
    rows[7, 0] = np.nan
    save_table(folder / "new.csv", np.column_stack([rows, np.arange(203)]), ["a", "b", "id"])
    return folder


def score(moons, out, *more):
    arguments = ["score", moons / "run", moons / "new.csv", "--id", "id", "--drop-invalid", "--out", out]
    return call(*arguments, *more)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_union_of_shards_is_the_whole(moons, tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    whole, out = tmp_path / f"whole.{ending}", tmp_path / f"scores.{ending}"
    score(moons, whole)
    for part in (3, 1, 2, 4):
        score(moons, out, "--shard", f"{part}/4")
    assert "none missing, none double" in call("merge", out).stdout
    if ending == "csv":
        found, expected = rows_of(out), rows_of(whole)
        assert [row["row"] for row in found] == [row["row"] for row in expected] and len(found) == 202
        for name in expected[0]:
            one, other = ([row[name] for row in rows] for rows in (found, expected))
            if name in ("flag", "discovery", "id", "row"):
                assert one == other
            else:
                np.testing.assert_allclose(np.array(one, float), np.array(other, float), rtol=1e-5)
    else:
        import pandas

        pandas.testing.assert_frame_equal(pandas.read_parquet(out), pandas.read_parquet(whole), rtol=1e-5)


def test_what_is_missing_double_or_foreign_is_not_merged(moons, tmp_path):
    out = tmp_path / "scores.csv"
    assert "no parts" in refused("merge", out)
    for part in (1, 2, 3):
        score(moons, out, "--shard", f"{part}/3")
    first, said = tmp_path / "scores.part-1-of-3.csv", tmp_path / "scores.part-1-of-3.json"
    assert "nothing to score" in score(moons, out, "--shard", "1/3").stdout  # it is there, whole
    content = first.read_text()
    first.write_text(content.replace("0", "1", 1))
    assert "not as it was written" in refused("merge", out)
    score(moons, out, "--shard", "1/3")  # a damaged part is scored again
    assert first.read_text() == content
    said.rename(tmp_path / "aside")
    assert "2 of 3 parts" in refused("merge", out, words=["without 1"])
    first.write_text("of a process that was killed")
    score(moons, out, "--shard", "1/3")
    assert first.read_text() == content
    second = tmp_path / "scores.part-2-of-3.json"
    record = json.loads(second.read_text())
    second.write_text(json.dumps(record | {"of": record["of"] | {"run": "another"}}))
    assert "another run" in refused("merge", out)
    second.write_text(json.dumps(record | {"rows": record["rows"] - 1}))
    assert "expected 203" in refused("merge", out)
    second.write_text(json.dumps(record | {"rows": "68"}))
    assert "rows: Input should be a valid integer" in refused("merge", out)
    second.write_text(json.dumps(record))
    # a part in the place of another one
    third, own = tmp_path / "scores.part-3-of-3.json", (tmp_path / "scores.part-3-of-3.json").read_text()
    table = tmp_path / "scores.part-3-of-3.csv"
    rows = table.read_text()
    table.write_text((tmp_path / "scores.part-2-of-3.csv").read_text())
    third.write_text(json.dumps(record | {"total": record["total"]}))
    assert "part 2 of 3; expected part 3 of 3" in refused("merge", out)
    more = {"rows": record["rows"], "sha256": record["sha256"], "part": [3, 3]}
    third.write_text(json.dumps(json.loads(own) | more))
    assert "in two parts" in refused("merge", out) or "expected 203" in refused("merge", out)
    table.write_text(rows)
    third.write_text(own)
    (tmp_path / "scores.part-4-of-3.json").write_text(own)
    assert "part-4-of-3.json; expected parts 1 to 3" in refused("merge", out)
    (tmp_path / "scores.part-4-of-3.json").unlink()
    score(moons, tmp_path / "scores.csv", "--shard", "1/2")
    assert "one number of parts" in refused("merge", out)


def test_the_parts_of_a_million_are_missed_at_once(tmp_path):
    said = {"part": [1, 999_999_999], "of": {}, "total": 1, "rows": 1, "sha256": ""}
    (tmp_path / "s.part-1-of-999999999.json").write_text(json.dumps(said))
    assert "1 of 999999999 parts" in refused("merge", tmp_path / "s.csv", words=["without 2, 3, 4"])


def test_text_stays_as_it_was_written(tmp_path):
    """Also text that a spreadsheet would compute, and spaces around it."""
    from flowknife.cli._files import write_columns
    from flowknife.cli._merge import part_file, tell_part

    names, whole, out = ["=1+1", " b ", "'-c", "d,e", "f\ng", "01"], tmp_path / "whole.csv", tmp_path / "s.csv"
    columns = {"row": np.arange(6), "id": np.array(names, object), "score": np.linspace(0, 1, 6)}
    write_columns(whole, columns)
    for part in (1, 2):
        shard, own = Shard(part, 2), slice(part - 1, None, 2)
        write_columns(part_file(out, shard), {name: column[own] for name, column in columns.items()})
        more = {"skipped": [], "left_out": 0, "alpha": None, "ranked": False}
        tell_part(part_file(out, shard), shard, {"verb": "score"}, 6, 3, more)
    call("merge", out)
    assert out.read_bytes() == whole.read_bytes()


def test_draws_in_shards(moons, tmp_path):
    out = tmp_path / "draws.csv"
    for part in (1, 2):
        call("sample", moons / "run", "-n", 15, "--seed", 0, "--shard", f"{part}/2", "--out", out)
    call("merge", out)
    assert len({row["a"] for row in rows_of(out)}) == 15  # no draw twice
    first = (tmp_path / "draws.part-1-of-2.csv").read_text()
    call("sample", moons / "run", "-n", 15, "--seed", 0, "--shard", "1/2", "--out", out, "--overwrite")
    assert (tmp_path / "draws.part-1-of-2.csv").read_text() == first
    assert "--seed" in refused("sample", moons / "run", "--shard", "1/2", "--out", tmp_path / "x.csv")


@pytest.mark.slow
def test_images_in_shards(tmp_path):
    pixels, _ = fk.data.digits()
    fk.images(pixels[:300], levels=2, width=16, train={"steps": 20}, show_progress=False).save(tmp_path / "run")
    folder = write_folder(pixels[300:500], tmp_path / "new")
    (folder / "broken.png").write_bytes(b"no image")
    call("score", tmp_path / "run", folder, "--out", tmp_path / "whole.csv")
    out = tmp_path / "scores.csv"
    for part in (1, 2):
        call("score", tmp_path / "run", folder, "--shard", f"{part}/2", "--out", out)
    call("merge", out)
    assert "64 for each" in refused("score", tmp_path / "run", folder, "--shard", "9/9", "--out", out)
    found, expected = rows_of(out), rows_of(tmp_path / "whole.csv")
    assert len(found) == len(expected) == 200
    assert [row["path"] for row in found] == [row["path"] for row in expected]
    for name in expected[0]:
        if name not in ("path", "flag", "discovery"):
            one, other = (np.array([row[name] for row in rows], float) for rows in (found, expected))
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert (tmp_path / "scores-skipped.csv").exists() or (tmp_path / "skipped.csv").exists()
