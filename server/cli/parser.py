"""The parser of all commands: no abbreviations, and mistakes in one line that names what is likely meant.

What an unknown flag was given is never said: it may be a key.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from .errors import USAGE

_FLAG = re.compile(r"--[a-z][\w-]*")


def checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a parser of argparse's that says what one of `values` says."""

    def parse_checked(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} {error}") from None

    return parse_checked


class Parser(argparse.ArgumentParser):
    """argparse's, but `--api-key` is never taken for the beginning of `--api-key-file`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and end the program for arguments that this very command does not have."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"there is no {self._unknown(rest)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """End the program with one line and the exit status of a mistake."""
        self.exit(USAGE, f"{self.prog}: {message} (see `{self.prog} --help`)\n")

    def _unknown(self, rest: Sequence[str]) -> str:
        flags = [text.partition("=")[0] for text in rest if text.startswith("-")]
        if not flags:
            return f"place for {' '.join(rest)!r}"
        likely = get_close_matches(flags[0], self._shown(), n=1, cutoff=0.6)
        return f"flag {', '.join(flags)}" + (f"; is {likely[0]} meant?" if likely else "")

    def _shown(self) -> list[str]:
        """Return the flags that the help has: argparse has no other way to ask for them."""
        lines = [line.strip() for line in self.format_help().splitlines() if line.startswith("  -")]
        return [flag for line in lines for flag in _FLAG.findall(line.partition("  ")[0])]
