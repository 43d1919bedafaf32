"""Compiles the loop for the processor at hand with the compiler at hand, once for both.

The library is kept in the user's cache, under a name that is a digest of all that it was made of, and is found there by
every later start. It is linked with neither torch nor OpenMP.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("loop.cpp")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-w")
NATIVE = {"x86_64": "-march=native", "AMD64": "-march=native", "aarch64": "-mcpu=native", "arm64": "-mcpu=native"}
SECONDS = 120  # that a compiler may take


class CannotCompile(Exception):
    """There is no compiler, or it failed; the message says which."""


def compiled(element: str) -> Path:
    """Return the library for elements of that type of the source, compiling it if needed. Raises CannotCompile."""
    compiler = find_compiler()
    command = [compiler, *FLAGS, *filter(None, [NATIVE.get(platform.machine())]), f"-DTYPE={element}"]
    folder = _folder()
    library = folder / f"loop-{_digest(command)}.so"
    if not library.exists():
        _run(command, library)
    return library


def find_compiler() -> str:
    """Return the path of the compiler that is used. Raises CannotCompile."""
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++")):
        if (found := shutil.which(name)) is not None:
            return found
    raise CannotCompile("there is no C++ compiler")


def _digest(command: list[str]) -> str:
    """Return a digest of all that the result depends on: source, compiler, flags and processor."""
    digest = hashlib.sha256(SOURCE.read_bytes())
    found = Path(command[0]).resolve().stat()
    for part in ("\0".join(command), f"{found.st_size} {found.st_mtime_ns}", platform.machine(), _processor()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:32]


def _processor() -> str:
    """Describe the processor and its instructions, as the system lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU")))


def _folder() -> Path:
    """Return a folder that only this user can write to, since its contents are run."""
    parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = parent / "peftserve"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="peftserve-"))


def _run(command: list[str], library: Path) -> None:
    """Compile to a temporary name and rename it: the library appears whole or not at all, even if others compile it."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        _call([*command, "-o", str(made), str(SOURCE)])
        made.replace(library)


def _call(command: list[str]) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except subprocess.CalledProcessError as error:
        raise CannotCompile(f"{Path(command[0]).name} failed: {error.stderr.strip()[:500]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotCompile(f"{Path(command[0]).name} did not run: {error}") from error
