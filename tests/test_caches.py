"""Compiled programs are kept between processes, in a private folder that can be switched off."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from flowknife import _xla
from flowknife._caches import cache_root, private_folder

PROGRAM = """
import jax
from flowknife import _types
seen = []
jax.monitoring.register_event_listener(lambda event, **_: seen.append(event.rsplit("/", 1)[-1]))
jax.jit(lambda x: jax.numpy.sort(jax.numpy.linalg.eigh(x @ x.T)[0]))(jax.numpy.ones((50, 50)))
print("hits", seen.count("cache_hits"), "dir", jax.config.jax_compilation_cache_dir)
"""


def run(**environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env={**kept, **environment}
    )
    return done.stdout.split()


def test_a_second_process_compiles_nothing_anew(tmp_path):
    cache = {"FLOWKNIFE_CACHE": str(tmp_path / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    first, second = run(**cache), run(**cache)
    assert int(first[1]) == 0 and int(second[1]) > 0
    folder = second[3]
    assert folder.startswith(str(tmp_path / "cache" / "compiled"))
    assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    assert not (Path(folder) / ".lockfile").exists()  # no process waits for another


def test_the_oldest_programs_are_removed_once_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(_xla, "_MOST_BYTES", 25)
    for age in range(4):
        (tmp_path / f"{age}-cache").write_bytes(bytes(10))
        os.utime(tmp_path / f"{age}-cache", (1e9 - age, 1e9 - age))
    _xla._prune(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*-cache")) == ["0-cache", "1-cache"]
    (tmp_path / "4-cache").write_bytes(bytes(10))
    _xla._prune(tmp_path)
    assert len(list(tmp_path.glob("*-cache"))) == 3
    os.utime(tmp_path / ".pruned", (1e9, 1e9))
    _xla._prune(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*-cache")) == ["0-cache", "4-cache"]


@pytest.fixture
def chosen(monkeypatch):
    """The folder that is used, where JAX was told this one."""
    before = jax.config.jax_compilation_cache_dir

    def found(folder, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        jax.config.update("jax_compilation_cache_dir", folder)
        _xla.keep_programs()
        return jax.config.jax_compilation_cache_dir

    yield found
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(("folder", "switch"), [(None, "off"), ("mine", "on")])
def test_what_the_user_has_chosen_stays(folder, switch, tmp_path, chosen):
    cache = {"FLOWKNIFE_CACHE": str(tmp_path / "cache"), "FLOWKNIFE_COMPILATION_CACHE": switch}
    assert chosen(folder, **cache) == folder
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path, chosen):
    (tmp_path / "file").write_text("")
    assert chosen(None, FLOWKNIFE_CACHE=str(tmp_path / "file"), FLOWKNIFE_COMPILATION_CACHE="on") is None


def test_a_folder_that_others_could_enter_is_closed(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWKNIFE_CACHE", str(tmp_path))
    open_to_all = cache_root() / "images"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    assert stat.S_IMODE(private_folder(open_to_all).stat().st_mode) == 0o700
