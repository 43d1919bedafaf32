"""`peftserve chat`: talk to the adapters of a running server in a terminal, or pipe one prompt through them."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from . import chat_commands
from .chat_commands import Quit, Session
from .client import Server, add_arguments
from .conversation import Conversation
from .errors import USAGE, CommandError, one_line
from .parser import checked
from .values import finite

PROMPT, MORE = ">>> ", "... "
FENCE = '"""'
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "chat",
        help="talk to the adapters of a running server",
        description="Talk to an adapter, a route or the base of a running server; /help lists what can be done inside. "
        "Where the input is no terminal, all of it is one prompt, and the answer is written to the output.",
    )
    parser.add_argument("model", metavar="ADAPTER", nargs="?", help="adapter, route or base (default: the server's)")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--temperature", metavar="T", type=checked(finite), help="0: always the likeliest token")
    parser.add_argument("--max-tokens", metavar="N", type=int, help="most tokens of an answer")
    parser.add_argument("--seed", metavar="N", type=int, help="the same seed draws the same answer")
    add_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    limits = {name: value for name in ("max_tokens", "seed") if (value := getattr(arguments, name)) is not None}
    conversation = Conversation(
        arguments.model, system=arguments.system, temperature=arguments.temperature, limits=limits
    )
    with Server(arguments.url, arguments.api_key) as server:
        if sys.stdin.isatty() and sys.stdout.isatty():
            return talk(Session(server, conversation))
        return _answer_once(server, conversation)


def _answer_once(server: Server, conversation: Conversation) -> int:
    try:
        prompt = sys.stdin.read().rstrip("\r\n")
    except UnicodeDecodeError:
        raise CommandError("the input is no text in UTF-8", USAGE) from None
    if not prompt:
        raise CommandError("the input is empty: pipe a prompt in, or start it in a terminal", USAGE)
    with closing(conversation.ask(server, prompt)) as pieces:
        for piece in pieces:
            if not piece.is_thought:
                print(piece.text, end="", flush=True)
    print()
    return 0


def talk(session: Session) -> int:
    """Read prompts and commands until the input ends. ^C ends an answer, or takes back a line that is being typed."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives `input` its history and editing

    chat_commands.greet(session)
    while True:
        try:
            _turn(session, _read())
        except (EOFError, Quit):
            print()
            return 0
        except KeyboardInterrupt:
            print("\n(/quit or ^D ends the program)")
        except CommandError as error:
            print(f"{one_line(str(error))}")


def _turn(session: Session, text: str) -> None:
    if text.startswith("/"):
        chat_commands.run(session, text)
    elif text.strip() and session.compared:
        from .compare import compare  # late: rich is wanted for this alone

        compare(session.server, [session.conversation.asking(name) for name in session.compared], text)
    elif text.strip():
        _answer(session, text)


def _answer(session: Session, prompt: str) -> None:
    was_completing = session.conversation.completes
    thinking = False
    with closing(session.conversation.ask(session.server, prompt)) as pieces:
        try:
            for piece in pieces:
                if piece.is_thought != thinking:
                    thinking = piece.is_thought
                    print(DIM if thinking else f"{PLAIN}\n", end="")
                print(piece.text, end="", flush=True)
        except KeyboardInterrupt:
            print(" (stopped)", end="")
    print(PLAIN if thinking else "")
    if session.conversation.completes and not was_completing:
        print("(there is no chat template: each prompt is continued by itself, without what was said before)")


def _read() -> str:
    """Return what is typed next: a line, more of them where one ends in a backslash, or all between triple quotes.

    Raises EOFError at the end of the input.
    """
    line = input(PROMPT)
    if line.lstrip().startswith(FENCE):
        return "\n".join(_fenced(line.lstrip()[len(FENCE) :]))
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input(MORE))
    return "\n".join(lines)


def _fenced(line: str) -> Iterator[Any]:
    while FENCE not in line:
        if line:
            yield line
        line = input(MORE)
    if rest := line.partition(FENCE)[0]:
        yield rest
