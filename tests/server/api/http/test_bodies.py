"""Bodies as they come off the connection: pieces, sizes, and how much is in them."""

import json

import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect

from peftserve.server.api.http.bodies import MAX_VALUES, SMALL_BODY, read_json
from peftserve.server.api.http.errors import ApiError
from peftserve.server.api.openai.model_request import Body


class _Any(Body):
    value: object = None


class _Piece(bytes):
    """Cannot be added to what came before: that would copy all of it for each piece."""

    def __add__(self, other):
        raise AssertionError("a body is put together once")

    __radd__ = __add__


def _request(*pieces):
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages[-1]["more_body"] = False
    rest = iter(messages)

    async def receive():
        return next(rest, {"type": "http.disconnect"})

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


async def test_pieces_are_put_together_once():
    data = json.dumps({"value": "x" * 10_000}).encode()
    read = await read_json(_request(*(_Piece(data[i : i + 1]) for i in range(len(data)))), _Any)
    assert read.value == "x" * 10_000


async def test_a_body_that_ends_too_early_is_no_body():
    request = _request(b'{"value":', b"1}")
    pieces = [await request.receive()]

    async def receive():
        return pieces.pop() if pieces else {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        await read_json(Request(request.scope, receive), _Any)


@pytest.mark.parametrize(
    ("entry", "number", "what"),
    [("[]", MAX_VALUES.containers, "containers"), ("1", MAX_VALUES.values, "values"), ('"a"', 1 << 18, "strings")],
)
async def test_more_values_than_a_parser_can_do_quickly_are_refused_before_it_sees_them(entry, number, what):
    class Never(_Any):
        @classmethod
        def model_validate_json(cls, *arguments, **fields):
            raise AssertionError("parsed")

    data = ('{"value": [' + ",".join([entry] * (number + 1)) + "]}").encode()
    assert len(data) > SMALL_BODY // 2
    padded = data + b" " * SMALL_BODY
    with pytest.raises(ApiError, match=f"more than {number} JSON {what}") as caught:
        await read_json(_request(padded), Never)
    assert caught.value.status_code == 400


async def test_a_long_text_of_commas_and_brackets_is_one_value():
    text = '[],{},"\\' * (SMALL_BODY // 4)
    assert (await read_json(_request(json.dumps({"value": text}).encode()), _Any)).value == text
