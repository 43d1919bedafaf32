"""What begins with a slash in `peftserve chat`: one function and one row of `COMMANDS` each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import NamedTuple
from urllib.parse import quote

from .client import Server
from .conversation import Conversation
from .errors import CommandError
from .values import finite

MOST_COMPARED = 6


class Quit(Exception):
    """The user has had enough."""


@dataclass
class Session:
    """A chat in a terminal. compared: names that answer each prompt side by side, instead of the conversation's."""

    server: Server
    conversation: Conversation
    compared: list[str] = field(default_factory=list)


Run = Callable[[Session, str], None]


class SlashCommand(NamedTuple):
    """usage: what stands behind the name."""

    run: Run
    usage: str
    about: str


def run(session: Session, text: str) -> None:
    """Run a command. Raises CommandError for what is none, and Quit."""
    name, _, rest = text[1:].strip().partition(" ")
    if name not in COMMANDS:
        likely = get_close_matches(name, COMMANDS, n=1)
        raise CommandError(f"there is no /{name}" + (f"; is /{likely[0]} meant?" if likely else "; see /help"))
    COMMANDS[name].run(session, rest.strip())


def greet(session: Session) -> None:
    """Say who will answer. Raises CommandError if there is no such model, or no server."""
    if session.conversation.model is not None:
        _require(session.server, session.conversation.model)
    names = [model["id"] for model in session.server.listed("/v1/models")]
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    print(f"{session.conversation.title} answers, of: {shown}. /help says what else can be typed.")


def _adapter(session: Session, name: str) -> None:
    if not name:
        print(f"{session.conversation.title} answers, of:")
        for model in session.server.listed("/v1/models"):
            print(f"  {model['id']}")
        return
    _require(session.server, name)
    session.conversation.model, session.conversation.mixture, session.compared = name, {}, []
    print(f"{name} answers")


def _compare(session: Session, names: str) -> None:
    chosen = list(dict.fromkeys(names.replace(",", " ").split()))
    if len(chosen) == 1 or len(chosen) > MOST_COMPARED:
        raise CommandError(f"/compare takes two to {MOST_COMPARED} names, or none to end it")
    for name in chosen:
        _require(session.server, name)
    session.compared = chosen
    print(f"{', '.join(chosen)} answer each prompt" if chosen else f"{session.conversation.title} answers alone")


def _mix(session: Session, text: str) -> None:
    mixture = dict(_weighted(part) for part in text.replace(",", " ").split())
    if not mixture:
        raise CommandError("/mix takes adapters with their weights: /mix a=0.7 b=0.3")
    for name in mixture:
        _require(session.server, name)
    session.conversation.mixture, session.compared = mixture, []
    print(f"{session.conversation.title} answers")


def _weighted(part: str) -> tuple[str, float]:
    name, equals, weight = part.partition("=")
    try:
        if name and equals:
            return name, finite(weight)
    except ValueError:
        pass
    raise CommandError(f"/mix: {part!r} is not NAME=WEIGHT, such as sql=0.7")


def _system(session: Session, text: str) -> None:
    session.conversation.system = text or None
    print("the system message is set" if text else "there is no system message")


def _temp(session: Session, text: str) -> None:
    try:
        value = finite(text) if text else None
    except ValueError:
        value = -1.0
    if value is not None and not 0 <= value <= 2:
        raise CommandError(f"/temp: {text!r} is no number from 0 to 2; without one, the server's default")
    session.conversation.temperature = value
    print(f"temperature {'as the server has it' if value is None else f'{value:g}'}")


def _reset(session: Session, _: str) -> None:
    session.conversation.messages.clear()
    print("all that was said is forgotten")


def _help(_: Session, __: str) -> None:
    shown = {f"/{name} {command.usage}".rstrip(): command.about for name, command in COMMANDS.items()}
    shown['"""'] = "begins and ends a prompt of several lines; so does a backslash at a line's end"
    shown["^C"] = "ends an answer; ^D ends the program"
    width = max(map(len, shown))
    print("\n".join(f"{name:<{width}}  {about}" for name, about in shown.items()))


def _quit(_: Session, __: str) -> None:
    raise Quit


def _require(server: Server, name: str) -> None:
    """Raise CommandError, with the server's words, if it has no such model."""
    if name != "default":
        server.call("GET", f"/v1/models/{quote(name, safe='@')}")


COMMANDS: Mapping[str, SlashCommand] = {
    "adapter": SlashCommand(_adapter, "[NAME]", "who answers from now on; without a name, who can"),
    "compare": SlashCommand(_compare, "[A B C]", "these answer each prompt side by side; without names, no more"),
    "mix": SlashCommand(_mix, "A=0.7 B=0.3", "a mixture of adapters answers"),
    "system": SlashCommand(_system, "[TEXT]", "set the system message, or take it away"),
    "temp": SlashCommand(_temp, "[T]", "set the temperature, or leave it to the server"),
    "reset": SlashCommand(_reset, "", "forget what was said"),
    "help": SlashCommand(_help, "", "this list"),
    "quit": SlashCommand(_quit, "", "end"),
    "bye": SlashCommand(_quit, "", "end, as Ollama has it"),
}
