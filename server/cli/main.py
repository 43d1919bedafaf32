"""The command `peftserve`: one parser, and one function for each sub-command. Imports nothing heavy.

Exit statuses: 0 all went well; 1 a server said no, or what was asked failed; 2 a mistake in the command; 3 no server
answers; 4 the server's engine died or hung, with --no-engine-restart; 130 interrupted by ^C; 141 whoever read the
output has gone, as for a program that SIGPIPE ends.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

from .errors import INTERRUPTED, NO_READER, CommandError, one_line
from .parser import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. Mistakes that the parser finds raise SystemExit."""
    if (sys.argv[1:] if arguments is None else arguments)[:1] == ["serve"]:
        _end_when_told()
    try:
        chosen = make_parser().parse_args(arguments)
        run: Callable[[argparse.Namespace], int] = chosen.run
        status = run(chosen)
        sys.stdout.flush()
    except CommandError as error:
        print(f"peftserve: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # What is left in the buffer would raise once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _end_when_told() -> None:
    """End at once and well on SIGTERM, until the server listens to it: the imports take seconds, and hold nothing."""
    with contextlib.suppress(ValueError):  # not on the main thread
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def make_parser() -> Parser:
    from importlib.metadata import version  # late, as the commands are: first of all, signals are heard

    from .commands import COMMANDS

    parser = Parser(prog="peftserve", description="One frozen base model in memory, every PEFT adapter served on it.")
    parser.add_argument("--version", action="version", version=f"peftserve {version('peftserve')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
