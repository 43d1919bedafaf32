"""What a benchmark ran on, as its JSON says it. Imports nothing heavy."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "peftserve", "vllm")


def machine() -> dict[str, str | int]:
    setup: dict[str, str | int] = {"cpu": cpu_name(), "cores": os.cpu_count() or 0, "python": platform.python_version()}
    return setup | {name: found for name in PACKAGES if (found := _version(name))}


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
