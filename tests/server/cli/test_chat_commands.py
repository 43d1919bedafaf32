from typing import Any

import pytest

from peftserve.server.cli import chat_commands
from peftserve.server.cli.chat_commands import Session
from peftserve.server.cli.client import Server
from peftserve.server.cli.conversation import Conversation
from peftserve.server.cli.errors import CommandError


def test_a_mixture_is_of_numbers_and_stays_as_it_was_without(stub: Any) -> None:
    stub.answers["GET", "/v1/models/snake"] = 200, {"id": "snake"}
    with Server(stub.url) as server:
        session = Session(server, Conversation())
        chat_commands.run(session, "/mix snake=-0.5")
        for weight in ("nan", "inf", "much", ""):
            with pytest.raises(CommandError, match=f"'snake={weight}' is not NAME=WEIGHT"):
                chat_commands.run(session, f"/mix snake={weight}")
        assert session.conversation.mixture == {"snake": -0.5}
