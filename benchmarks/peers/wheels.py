"""Unpacks the Python files of vLLM's and SGLang's LoRA kernels, which the kernel benchmark imports: 1 MB of 300.

    python -m benchmarks.peers.wheels [--from FOLDER_WITH_WHEELS]

Neither package is installed. The files go to the git-ignored `.wheels` beside this file, which may be carried to a
machine without a network. Imports nothing but the standard library.
"""

import argparse
import fnmatch
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSIONS = {"vllm": "0.24.0", "sglang": "0.5.23"}
FILES = {
    "vllm": ("vllm/lora/ops/triton_ops/*.py", "vllm/utils/math_utils.py"),
    "sglang": (
        "sglang/kernels/ops/lora/common/*.py",
        "sglang/kernels/ops/lora/dense/chunked_sgmv_*.py",
        "sglang/kernels/ops/lora/dense/lora_tuning_config.py",
        "sglang/kernels/ops/lora/dense/csgmv_configs/*.json",
        "sglang/kernels/ops/lora/moe/virtual_experts.py",
        "sglang/srt/lora/utils.py",
        "sglang/srt/lora/workspace.py",
        "sglang/srt/lora/dense/*.py",
        "sglang/srt/lora/dense/configs/*.json",
    ),
}
UNPACKED = Path(__file__).with_name(".wheels")


def unpacked(package: str) -> Path | None:
    """Return the folder of the package's files, None if they were not unpacked."""
    folder = UNPACKED / f"{package}-{VERSIONS[package]}"
    return folder if folder.is_dir() else None


def unpack(package: str, wheel: Path) -> int:
    """Unpack the wheel's files; return their number."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if any(fnmatch.fnmatchcase(n, pattern) for pattern in FILES[package])]
        archive.extractall(UNPACKED / f"{package}-{VERSIONS[package]}", names)
    return len(names)


def download(package: str, folder: Path) -> None:
    """Download the wheel for any platform that pip takes: only Python files are read."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*command, f"{package}=={VERSIONS[package]}"], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="folder", type=Path, help="where the wheels already are")
    given = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        for package, version in VERSIONS.items():
            if not given:
                download(package, Path(temporary))
            (wheel,) = (given or Path(temporary)).glob(f"{package}-{version}-*.whl")
            print(f"{package} {version}: {unpack(package, wheel)} files")


if __name__ == "__main__":
    main()
