"""The health check of the image: `python -m peftserve.server.cli.health` asks the server beside it whether it lives.

It reads what the container's first process was started with, so it follows the port, socket, prefix and TLS that
flags, variables or the file of settings chose. Exit status 0: alive. 1: not.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from . import resolution
from .parser import Parser

FIRST_PROCESS = Path("/proc/1/cmdline")
SECONDS = 2.0
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # addresses that are listened on, and where one asks


def settings_of(words: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of a server that was started by these words. Raises CommandError, SystemExit."""
    parser = Parser(prog="peftserve serve")
    resolution.add_arguments(parser)
    flags = words[words.index("serve") + 1 :] if "serve" in words else []
    return resolution.resolve(vars(parser.parse_args(flags, argparse.Namespace())), environ)


def is_alive(settings: Mapping[str, Any]) -> bool:
    """Ask a server for its liveness."""
    uds = settings["uds"]
    transport = httpx.HTTPTransport(uds=str(uds) if uds else None, verify=False)
    with httpx.Client(transport=transport, timeout=SECONDS) as client:
        try:
            return client.get(f"{_base(settings)}/health/live").is_success
        except httpx.HTTPError:
            return False


def _base(settings: Mapping[str, Any]) -> str:
    host = _ANY.get(settings["host"], settings["host"])
    shown = f"[{host}]" if ":" in host else host
    scheme = "https" if settings["ssl_certfile"] else "http"
    return f"{scheme}://{shown}:{settings['port']}{settings['root_path'] or ''}"


def main() -> int:
    words = FIRST_PROCESS.read_bytes().decode(errors="replace").split("\0")[:-1]
    return 0 if is_alive(settings_of(words, os.environ)) else 1


if __name__ == "__main__":
    sys.exit(main())
