import ctypes
import os
import stat
from pathlib import Path

import pytest

from peftserve.kernels.bypass.cpp import compiler
from peftserve.kernels.bypass.cpp.compiler import CannotCompile, compiled


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for the test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "peftserve"


def fake_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Make a script that replaces the compiler. `$out` is the file that it must make."""
    path = folder / "compiler"
    path.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\nout="$2"\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(path))
    return path


def test_a_library_is_compiled_once_and_kept_for_this_user_alone(cache: Path) -> None:
    library = compiled("float")
    assert ctypes.CDLL(str(library)).most_rows_of_a_tile() > 1
    assert library.parent == cache
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    made = library.stat().st_mtime_ns
    assert compiled("float") == library
    assert library.stat().st_mtime_ns == made
    assert list(cache.iterdir()) == [library]


def test_what_it_was_made_of_is_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    names, script = set(), fake_compiler(tmp_path, monkeypatch, 'echo made > "$out"')
    names.add(compiled("float").name)
    names.add(compiled("float16").name)
    monkeypatch.setattr(compiler, "_processor", lambda: "another one")
    names.add(compiled("float").name)
    script.write_text(script.read_text() + "# a newer one\n")
    names.add(compiled("float").name)
    assert len(names) == len(list(cache.iterdir())) == 4


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(CannotCompile, match="no C\\+\\+ compiler"):
        compiled("float")


def test_a_compiler_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    fake_compiler(tmp_path, monkeypatch, 'echo half > "$out"; echo no such instruction >&2; exit 1')
    with pytest.raises(CannotCompile, match="no such instruction"):
        compiled("float")
    assert not list(cache.iterdir())


@pytest.mark.skipif(os.getuid() == 0, reason="nothing keeps root from writing")
def test_a_cache_that_cannot_be_written_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    fake_compiler(tmp_path, monkeypatch, 'echo made > "$out"')
    assert compiled("float").parent != cache


def test_a_cache_that_is_no_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("something else")
    fake_compiler(tmp_path, monkeypatch, 'echo made > "$out"')
    assert compiled("float").parent != cache
