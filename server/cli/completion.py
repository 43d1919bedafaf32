"""`peftserve completion`: what makes a shell complete commands and flags."""

import argparse

from .errors import CommandError

SHELLS = ("bash", "zsh", "tcsh")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "completion",
        help="print what makes a shell complete commands and flags",
        description="Print a script for a shell: save it as ~/.local/share/bash-completion/completions/peftserve for "
        "bash, and as _peftserve in a folder of $fpath for zsh.",
    )
    parser.add_argument("shell", metavar="SHELL", help=f"one of {', '.join(SHELLS)}")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import shtab  # late, as the parser of everything is

    from .main import make_parser

    if arguments.shell not in SHELLS:
        raise CommandError(f"no completion can be written for {arguments.shell!r}, but for {', '.join(SHELLS)}")
    print(shtab.complete(make_parser(), shell=arguments.shell))
    return 0
