"""`peftserve doctor`: whether a server would start on this machine, with what, and what would be slow and why."""

import argparse
import json
import os
from pathlib import Path

from ..demo import DEMO_MODEL
from . import doctor_model, doctor_system, values
from .findings import FATAL, MARKS, Finding, Subject
from .serve import default_state_dir, model_name
from .settings.setting import ENV_PREFIX

CHECKS = (
    doctor_system.versions,
    doctor_system.device,
    doctor_system.kernels,
    doctor_system.state_folder,
    doctor_system.port,
    doctor_model.model,
)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "doctor",
        help="say whether a server would start here, with what, and what would be slow",
        description="Look at this machine as `peftserve serve MODEL` would find it. The exit status is 1 if it could "
        "not start.",
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="folder or hub id of the base (default: the demo)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--state-dir", metavar="DIR", type=values.path, help="the server's (default: as serve's)")
    parser.add_argument("--host", default=os.environ.get(f"{ENV_PREFIX}HOST", "127.0.0.1"), help="address to listen on")
    parser.add_argument(
        "--port", type=int, default=os.environ.get(f"{ENV_PREFIX}PORT", "8000"), help="port to listen on"
    )
    parser.add_argument("--json", action="store_true", help="a list of objects, for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    found = examine(_subject(arguments))
    if arguments.json:
        print(json.dumps([finding._asdict() for finding in found], indent=2, ensure_ascii=False))
    else:
        width = max(len(finding.topic) for finding in found)
        print("\n".join(f"{MARKS[one.level]:<5}  {one.topic:<{width}}  {one.text}" for one in found))
    return int(any(finding.level == FATAL for finding in found))


def examine(subject: Subject) -> list[Finding]:
    """Return all findings, in the order of the checks."""
    return [finding for check in CHECKS for finding in check(subject)]


def _subject(arguments: argparse.Namespace) -> Subject:
    from ..diagnosis.machine import look  # late: it imports torch

    variable = os.environ.get(f"{ENV_PREFIX}STATE_DIR")
    own: Path | None = arguments.state_dir or (values.path(variable) if variable else None)
    return Subject(
        model=arguments.model or str(DEMO_MODEL),
        machine=look(arguments.device),
        state_dir=own or default_state_dir(model_name(arguments.model), os.environ),
        host=arguments.host,
        port=arguments.port,
    )
