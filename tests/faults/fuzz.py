"""Requests that are nearly right, or not at all: of every route that the server describes, and uploads.

The server's own description gives routes and examples, so that a new route is asked without a word here.
"""

import json
import random
from typing import Any

import httpx

from .subject import DEFAULT, STAYING, Subject, check_envelope

NEVER_ENDING = "events"  # a stream for as long as the client listens
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        1.5,
        -1e308,
        1e400,
        2**31,
        2**63,
        2**64,
        10**400,
        "",
        "a",
        "default",
        "a0",
        "a0@9",
    ),
    *("\0", "\ud800", "é" * 3, "x" * 5000, "../../etc/passwd", "/etc/passwd", "{}", "\r\nx: y", "a0\n", "😀", "%00"),
    *([], {}, [[]], [None], [0] * 300, [-1], [2**40], ["a"] * 70, {"a": {"b": [1, {"c": None}]}}, [1.5], ["", None]),
)
NAMES = ("x", "a0@99", "..", "%2e%2e%2f", "%00", "é", "a" * 200, "default", "tiny", "-", "x@", "@1", "a/b", "x@1")
HEADERS: tuple[dict[str, str], ...] = (
    *({}, {}, {}, {"content-type": "text/plain"}, {"content-type": "multipart/form-data"}, {"accept": "\xff"}),
    *({"content-encoding": "gzip"}, {"expect": "100-continue"}, {"x-request-id": "a\tb"}, {"authorization": "Basic é"}),
    *({"traceparent": "00-zz"}, {"accept-encoding": "gzip;q=x"}, {"content-type": "application/json; charset=utf-16"}),
)
FILES = (
    *("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "../x", "/etc/x", "a/adapter_config.json"),
    *(
        "",
        "\0",
        "x" * 300,
        "adapter_model.bin",
        "e/adapter_model.safetensors",
        "chat_template.jinja",
        "..",
        "README.md",
    ),
)


async def requests(subject: Subject, draw: random.Random, rounds: int) -> None:
    """Send so many requests. None is answered with 5xx, each error is in the envelope, and the server is as it was."""
    begun = len(subject.logged())
    async with subject.client() as client:
        described = (await client.get("/openapi.json")).json()["paths"]
        routes = [(path, method, one) for path, methods in described.items() for method, one in methods.items()]
        routes = [route for route in routes if NEVER_ENDING not in route[0]]
        assert len(routes) > 30
        outside = _outside(subject)
        for number in range(rounds):
            request = _upload(client, draw) if draw.random() < 0.1 else _nearly(client, draw, *draw.choice(routes))
            if request is None:
                continue
            answer = await client.send(request)
            try:
                check_envelope(answer)
            except (AssertionError, ValueError, KeyError) as error:
                sent = f"{request.method} {request.url} {request.headers.get('content-type')} {request.content[:600]!r}"
                raise AssertionError(f"request {number}: {sent}: {error}") from error
        assert _outside(subject) == outside, "something lies outside the state folder"
        await _tidy(client)
    assert "Traceback" not in subject.logged(begun), subject.logged(begun)[-3000:]
    await subject.clear()
    await subject.check()


def _nearly(
    client: httpx.AsyncClient, draw: random.Random, path: str, method: str, described: dict[str, Any]
) -> httpx.Request | None:
    """Build a request like an example of a route; None where the client itself can send no such one."""
    for parameter in described.get("parameters", []):
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", draw.choice(NAMES))
    queries = [parameter["name"] for parameter in described.get("parameters", []) if parameter["in"] == "query"]
    query = {name: str(draw.choice(VALUES)).encode("utf-8", "replace") for name in queries if draw.random() < 0.4}
    content = _body(draw, _example(draw, described))
    headers = {"content-type": "application/json", **draw.choice(HEADERS)}
    try:
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        return client.build_request(method.upper(), path, params=query or None, content=content, headers=encoded)
    except (ValueError, httpx.InvalidURL):
        return None


def _example(draw: random.Random, described: dict[str, Any]) -> Any:
    content = described.get("requestBody", {}).get("content", {}).get("application/json", {})
    examples = [example["value"] for example in content.get("examples", {}).values() if "value" in example]
    return draw.choice([*examples, content.get("example", {})])


def _body(draw: random.Random, example: Any) -> bytes:
    """Return the text of a body that was changed in a few places, and now and then no JSON at all."""
    value = example
    for _ in range(draw.choice((0, 1, 1, 2, 4))):
        value = _changed(draw, value)
    text = json.dumps(value).encode()
    kind = draw.random()
    if kind < 0.05:
        return text[: draw.randrange(len(text) + 1)]
    if kind < 0.1:
        place = draw.randrange(len(text) + 1)
        return text[:place] + draw.randbytes(3) + text[place:]
    if kind < 0.12:
        return b"[" * draw.choice((50, 5000)) + text
    return text


def _changed(draw: random.Random, value: Any) -> Any:
    """Return a value with something in it replaced, taken away, or added."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice([*value])
        kind = draw.random()
        if kind < 0.1:
            return {name: one for name, one in value.items() if name != key}
        if kind < 0.2:
            return {
                **value,
                draw.choice(("x", "stream", "n", "logprobs", "adapters", "tools", "stop")): draw.choice(VALUES),
            }
        return {**value, key: _changed(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        return [*value[:place], _changed(draw, value[place]), *value[place + 1 :]]
    return draw.choice(VALUES)


def _upload(client: httpx.AsyncClient, draw: random.Random) -> httpx.Request:
    """Build a form with some of an adapter's files, of some contents, and other parts."""
    parts = []
    for _ in range(draw.randrange(6)):
        name = draw.choice(("files", "files", "files", "name", "tags", "ttl", "metadata", "pinned", "x"))
        file = f'; filename="{draw.choice(FILES)}"' if name == "files" else ""
        parts.append(f'content-disposition: form-data; name="{name}"{file}'.encode() + b"\r\n\r\n" + _content(draw))
    body = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + draw.choice(
        (b"--b--\r\n", b"--b--\r\n", b"--b", b"")
    )
    kind = draw.choice(("multipart/form-data; boundary=b", "multipart/form-data; boundary=b", "multipart/form-data"))
    return client.build_request("POST", "/v1/adapters", content=body, headers={"content-type": kind})


def _content(draw: random.Random) -> bytes:
    header = json.dumps(
        draw.choice(({}, {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}}, [], {"x": 1}))
    )
    config = {"peft_type": draw.choice(("LORA", "IA3", "X", None)), "target_modules": draw.choice(VALUES), "r": 2}
    return draw.choice(
        (
            *(b"", b"fuzz", b"fuzz", draw.randbytes(50), json.dumps(config).encode(), b"{}"),
            *(len(header).to_bytes(8, "little") + header.encode(), b"\xff" * 8, b"\x80\x04pickle"),
        )
    )


def _outside(subject: Subject) -> set[str]:
    """Return what lies beside the state folder."""
    return {path.name for path in subject.state.parent.iterdir()}


async def _tidy(client: httpx.AsyncClient) -> None:
    """Take back what requests that were right have done."""
    assert (await client.put("/v1/default-adapter", json={"adapter": DEFAULT})).status_code == 200
    for route in (await client.get("/v1/routes")).json()["data"]:
        assert (await client.delete(f"/v1/routes/{route['name']}?force=true")).status_code == 200
    assert {*STAYING} <= {card["name"] for card in (await client.get("/v1/adapters")).json()["data"]}
