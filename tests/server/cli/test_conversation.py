from collections.abc import Iterator
from contextlib import closing
from typing import Any, cast

import pytest

from peftserve.server.cli.client import Server
from peftserve.server.cli.conversation import Conversation
from peftserve.server.cli.errors import FAILED, CommandError

SAID = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "xy"}]


class Speaker:
    """Instead of a server: says pieces, and then raises what it was given, if anything."""

    def __init__(self, *pieces: str, failure: BaseException | None = None) -> None:
        self._pieces = pieces
        self._failure = failure

    def events(self, path: str, body: Any) -> Iterator[Any]:
        for piece in self._pieces:
            yield {"choices": [{"delta": {"content": piece}}]}
        if self._failure is not None:
            raise self._failure


def ask(conversation: Conversation, speaker: Speaker) -> Iterator[str]:
    with closing(conversation.ask(cast(Server, speaker), "a")) as pieces:
        for piece in pieces:
            yield piece.text


def test_what_was_said_is_remembered() -> None:
    conversation = Conversation()
    assert list(ask(conversation, Speaker("x", "y"))) == ["x", "y"]
    assert conversation.messages == SAID


def test_an_answer_that_the_user_ends_is_remembered_as_far_as_it_has_come() -> None:
    conversation = Conversation()
    with closing(conversation.ask(cast(Server, Speaker("xy", "z")), "a")) as pieces:
        next(pieces)
    assert conversation.messages == SAID
    interrupted = Conversation()
    with pytest.raises(KeyboardInterrupt):
        list(ask(interrupted, Speaker("x", "y", failure=KeyboardInterrupt())))
    assert interrupted.messages == SAID


def test_an_answer_that_a_failure_tears_off_is_not_remembered() -> None:
    conversation = Conversation(messages=[*SAID])
    with pytest.raises(CommandError, match="gone"):
        list(ask(conversation, Speaker("SELECT na", failure=CommandError("the engine has gone", FAILED))))
    assert conversation.messages == SAID
