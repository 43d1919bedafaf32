"""The machine that a benchmark ran on, for its JSON. Imports torch only to name a device."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FLAGS = re.compile(r"avx.*|fma|f16c|amx.*|asimd.*|sve.*|bf16|i8mm")  # of a processor, which products depend on
PACKAGES = ("torch", "triton", "transformers", "peft", "peftserve", "vllm")


def machine() -> dict[str, str | int]:
    """Return the processor, its flags and cores, and the versions of Python and of installed packages."""
    setup: dict[str, str | int] = {"cpu": cpu_name(), "cores": os.cpu_count() or 0, "python": platform.python_version()}
    setup["cpu_flags"] = " ".join(sorted(filter(FLAGS.fullmatch, _of_cpu("flags", "Features").split())))
    return setup | {name: found for name in PACKAGES if (found := _version(name))}


def machine_of(device: str) -> dict[str, str | int]:
    """Return the machine, the name of the device that ran the work ("cpu" or "cuda"), and torch's CPU threads."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    return {"device": name, "threads": torch.get_num_threads(), **machine()}


def cpu_name() -> str:
    return _of_cpu("model name") or platform.processor() or platform.machine()


def _of_cpu(*names: str) -> str:
    """Return the first processor's field of one of these names in /proc/cpuinfo; empty if there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(names)), "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
