"""`peftserve state`: check, repair or back up a state folder, without a server or beside one."""

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from peftserve.adapters.errors import AdapterError
from peftserve.adapters.maintenance import Report, back_up, check, repair

from .errors import FAILED, CommandError
from .progress import watched
from .settings.setting import ENV_PREFIX
from .values import path

STATE_DIR = f"{ENV_PREFIX}STATE_DIR"


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("state", help="check, repair or back up a state folder")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    _action(actions, "check", "read all of it and say what is damaged; changes nothing", _check)
    _action(actions, "repair", "mend it and set aside what is damaged; no server may run on it", _repair)
    backup = _action(actions, "backup", "copy it to a new folder, from which a server can start; one may run", _back_up)
    backup.add_argument("target", metavar="FOLDER", type=path, nargs="?", help="where to; there must be nothing yet")
    backup.add_argument("--out", metavar="FOLDER", type=path, help="the same")


def _action(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    about: str,
    run: Callable[[Path, argparse.Namespace], Report],
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
    default = os.environ.get(STATE_DIR)
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        type=path,
        default=path(default) if default else None,
        required=not default,
        help=f"the server's (default: {STATE_DIR})",
    )
    parser.set_defaults(run=lambda arguments: _run(run, arguments))
    return parser


def _run(run: Callable[[Path, argparse.Namespace], Report], arguments: argparse.Namespace) -> int:
    """Run an action and print its report; return 0 if all versions can be served, and 1 if not."""
    if not arguments.state_dir.is_dir():
        raise CommandError(f"--state-dir: there is no folder {str(arguments.state_dir)!r}")
    try:
        report = run(arguments.state_dir, arguments)
    except AdapterError as error:
        raise CommandError(error.message, FAILED) from None
    except OSError as error:
        raise CommandError(f"{error.strerror or error}: {error.filename or arguments.state_dir}", FAILED) from None
    for sentence in report.found:
        print(sentence)
    for ref in report.damaged:
        print(f"The files of {ref} are damaged or gone: upload the same files again, or remove it.")
    print(f"{len(report.whole)} of {len(report.whole) + len(report.damaged)} versions are whole.")
    is_mended = run is _repair
    return FAILED if report.damaged or (report.found and not is_mended) else 0


def _check(folder: Path, _: argparse.Namespace) -> Report:
    return check(folder, _progress("checking"))


def _repair(folder: Path, _: argparse.Namespace) -> Report:
    return repair(folder, _progress("checking"))


def _back_up(folder: Path, arguments: argparse.Namespace) -> Report:
    target = arguments.target or arguments.out
    if target is None or (arguments.target and arguments.out):
        raise CommandError("give one folder to write the backup to: peftserve state backup --state-dir DIR FOLDER")
    report = back_up(folder, target, _progress("copying"))
    print(f"The backup is in {target}; `peftserve serve --state-dir {target}` starts from it.")
    return report


def _progress(what: str) -> Callable[[list[str]], Iterable[str]]:
    return lambda digests: watched(digests, what)
