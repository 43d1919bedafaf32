"""A conversation with a server: who is asked, what has been said, and the answer as pieces of text.

Knows no terminal. A base without a chat template continues texts, and then only the prompt is sent.
"""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from .client import Server
from .errors import CommandError

NO_TEMPLATE = "no_chat_template"  # the code of the server's error


class Piece(NamedTuple):
    """A piece of an answer. is_thought: of the reasoning before it."""

    text: str
    is_thought: bool = False


@dataclass
class Conversation:
    """All that a request is made of.

    model: None for the server's default. mixture: adapters with their weights, instead of a model. limits: fields of
    the request such as max_tokens. completes: the prompt is continued, since there is no chat template.
    """

    model: str | None = None
    mixture: dict[str, float] = field(default_factory=dict)
    system: str | None = None
    temperature: float | None = None
    limits: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)
    completes: bool = False

    @property
    def title(self) -> str:
        """Return who is asked, as people read it."""
        if self.mixture:
            return " + ".join(f"{weight:g} {name}" for name, weight in self.mixture.items())
        return self.model or "default"

    def asking(self, model: str) -> "Conversation":
        """Return the same conversation with another partner, whose answers are not part of this one."""
        return replace(self, model=model, mixture={}, messages=[*self.messages])

    def ask(self, server: Server, prompt: str) -> Generator[Piece]:
        """Yield the answer in pieces, and remember what of it has come, also where the user ends it.

        Raises CommandError, and remembers nothing: what a failure has torn off is no answer.
        """
        answer = ""
        try:
            for piece in self._pieces(server, prompt):
                answer += "" if piece.is_thought else piece.text
                yield piece
        except (GeneratorExit, KeyboardInterrupt):
            self._remember(prompt, answer)
            raise
        self._remember(prompt, answer)

    def _remember(self, prompt: str, answer: str) -> None:
        if answer:
            said = (("user", prompt), ("assistant", answer))
            self.messages += [{"role": role, "content": text} for role, text in said]

    def _pieces(self, server: Server, prompt: str) -> Iterator[Piece]:
        if not self.completes:
            try:
                yield from _chat(server, {**self._fields(), "messages": self._chat(prompt)})
            except CommandError as error:
                if error.code != NO_TEMPLATE:
                    raise
                self.completes = True
        if self.completes:
            yield from _completion(server, {**self._fields(), "prompt": prompt})

    def _chat(self, prompt: str) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.messages, {"role": "user", "content": prompt}]

    def _fields(self) -> dict[str, Any]:
        who: dict[str, Any] = {}
        if self.mixture:
            who["adapters"] = [{"name": name, "weight": weight} for name, weight in self.mixture.items()]
        elif self.model is not None:
            who["model"] = self.model
        warmth = {} if self.temperature is None else {"temperature": self.temperature}
        return {**who, **warmth, **self.limits, "stream": True}


def _chat(server: Server, body: Mapping[str, Any]) -> Iterator[Piece]:
    for event in server.events("/v1/chat/completions", body):
        for choice in event["choices"]:
            delta = choice["delta"]
            if thought := delta.get("reasoning_content") or delta.get("reasoning"):
                yield Piece(thought, is_thought=True)
            if text := delta.get("content"):
                yield Piece(text)


def _completion(server: Server, body: Mapping[str, Any]) -> Iterator[Piece]:
    for event in server.events("/v1/completions", body):
        for choice in event["choices"]:
            if choice["text"]:
                yield Piece(choice["text"])
