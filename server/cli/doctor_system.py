"""Checks of the machine: versions, device, kernels, the state folder, the port."""

import importlib.metadata
import os
import platform
import shutil
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from .adapters import readable_size
from .findings import FATAL, GOOD, SLOW, Finding, Subject

LEAST_FREE = 1 << 30  # bytes of disk under which uploads will soon fail
_FAST_16_BIT = ("avx512_bf16", "amx_bf16", "bf16")  # as /proc/cpuinfo names them, on x86 and ARM
_SHOWN = ("torch", "transformers", "triton", "tokenizers", "llguidance", "fastapi")


def versions(_: Subject) -> Iterator[Finding]:
    """Compare what is installed with what the package asks for."""
    yield Finding(GOOD, "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    wanted = _wanted()
    for name in sorted(wanted.keys() | set(_SHOWN), key=str.lower):
        if name in wanted or name in _SHOWN:
            yield from _version(name, wanted.get(name, ""))


def _wanted() -> dict[str, str]:
    """Return the ranges of versions of all that is needed on this machine, by name."""
    from packaging.requirements import Requirement

    requirements = map(Requirement, importlib.metadata.requires("peftserve") or ())
    return {
        one.name: str(one.specifier) for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})
    }


def _version(name: str, wanted: str) -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if wanted:
            yield Finding(FATAL, name, f"is not installed; {wanted} is needed: pip install '{name}{wanted}'")
        return
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        yield Finding(FATAL, name, f"{version} is outside of what is supported: pip install '{name}{wanted}'")
    elif name in _SHOWN:
        yield Finding(GOOD, name, f"{version}" + (f" (supported: {wanted})" if wanted else ""))


def device(subject: Subject) -> Iterator[Finding]:
    """Say what the model would run on."""
    here = subject.machine
    if not here.has_device:
        yield Finding(FATAL, "device", "--device cuda, but torch finds no GPU: install a driver and torch with CUDA")
    elif here.device == "cuda":
        memory = f"{readable_size(here.free)} of {readable_size(here.total)} free"
        yield Finding(GOOD, "device", f"{here.name}, {memory}")
    else:
        yield Finding(GOOD, "device", f"CPU with {os.cpu_count()} cores, {here.threads} threads")
        if not _has_fast_16_bit():
            why = "this processor has no 16-bit products: bfloat16 models run in float32, in twice the memory"
            yield Finding(SLOW, "device", why)


def _has_fast_16_bit() -> bool:
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.is_file() else set()
    return not words or any(name in words for name in _FAST_16_BIT)


def kernels(subject: Subject) -> Iterator[Finding]:
    """Say which kernels would run."""
    here = subject.machine
    if here.compiler is not None:
        yield Finding(GOOD, "kernels", f"C++ compiler {here.compiler}")
    elif here.device == "cpu":
        yield Finding(SLOW, "kernels", "no C++ compiler: adapters run operator by operator; install g++ or clang++")
    if here.device == "cuda":
        yield from _triton()


def _triton() -> Iterator[Finding]:
    if find_spec("triton") is None:
        yield Finding(SLOW, "kernels", "no triton: adapters and attention run on torch's operators; pip install triton")
    elif shutil.which(os.environ.get("CC", "cc")) is None and shutil.which("gcc") is None:
        yield Finding(SLOW, "kernels", "no C compiler, which triton needs for its launchers; install gcc")
    else:
        yield Finding(GOOD, "kernels", "triton, with a C compiler for its launchers")


def state_folder(subject: Subject) -> Iterator[Finding]:
    """See whether the state folder can be written, and how much room there is."""
    folder = subject.state_dir
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Finding(FATAL, "state", f"cannot write {str(there)!r}: choose another folder by --state-dir")
        return
    free = shutil.disk_usage(there).free
    what = f"{str(folder)!r}, {readable_size(free)} free"
    if free < LEAST_FREE:
        yield Finding(SLOW, "state", f"{what}: uploads will soon be refused; make room, or choose another --state-dir")
    else:
        yield Finding(GOOD, "state", what)


def port(subject: Subject) -> Iterator[Finding]:
    """See whether the port can be listened on."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(subject.host, subject.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, number) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no port has this number"
        yield Finding(FATAL, "port", f"{subject.host}:{subject.port}: {reason}; choose another by --port")
    else:
        yield Finding(GOOD, "port", f"{subject.host}:{subject.port} is free")
