"""Write constraints.txt: one set of versions for every supported Python and platform, with CUDA or not. `make pins`.

uv resolves from the index's own metadata; no wheel of this machine and no setting of its pip takes part. `--check`
resolves what constraints.txt says instead, and writes nothing.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import NamedTemporaryFile

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
HEADER = "# The tested set, for every supported Python and platform: see CONTRIBUTING.md. Made by `make pins`.\n"
OLDEST = "3.11"
PYTHONS = ("3.11", "3.12", "3.13")
LINUX, MAC = "x86_64-manylinux_2_28", "aarch64-apple-darwin"
PLATFORMS = (LINUX, "aarch64-manylinux_2_28", MAC)


def universal(pinned: Iterable[str] = ()) -> str:
    """Return pins with markers. pinned: options for uv. Raises CalledProcessError, whose stderr says what is wrong."""
    return _resolve("--universal", "--python-version", OLDEST, "--all-extras", *pinned)


def resolve(python: str, platform: str, *options: str) -> str:
    """Return the versions that constraints.txt allows on one platform. Raises CalledProcessError."""
    chosen = ("--python-version", python, "--python-platform", platform)
    return _resolve("-c", str(CONSTRAINTS), *chosen, "--all-extras", *options)


def _resolve(*options: str) -> str:
    command = [sys.executable, "-m", "uv", "pip", "compile", str(ROOT / "pyproject.toml"), *options]
    plain = ("--no-config", "--quiet", "--no-header", "--no-annotate")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    environ["MACOSX_DEPLOYMENT_TARGET"] = "14.0"  # the oldest that torch is built for
    if certificates := os.environ.get("PIP_CERT"):
        environ.setdefault("SSL_CERT_FILE", certificates)
    return subprocess.run([*command, *plain], check=True, capture_output=True, text=True, env=environ).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--pin", action="append", default=[], metavar="PACKAGE==VERSION", help="keep this one")
    arguments = parser.parse_args()
    if arguments.check:
        for python in PYTHONS:
            for platform in PLATFORMS:
                resolve(python, platform)
                print(f"Python {python} on {platform}: resolved")
        return 0
    with NamedTemporaryFile("w", suffix=".txt") as kept:
        kept.write("\n".join(arguments.pin))
        kept.flush()
        CONSTRAINTS.write_text(HEADER + universal(("-c", kept.name)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
