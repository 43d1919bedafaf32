"""The command line's client of a running server: one httpx client, and its errors as sentences."""

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx

from .errors import FAILED, UNREACHABLE, USAGE, CommandError

DEFAULT_URL = "http://127.0.0.1:8000"
_TIMEOUT = httpx.Timeout(300.0, connect=10.0)  # the answer to an upload comes when the adapter has been checked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that set `url` and `api_key`."""
    parser.add_argument(
        "--url",
        "--base-url",
        dest="url",
        metavar="URL",
        type=_base,
        default=os.environ.get("PEFTSERVE_URL", DEFAULT_URL),
        help=f"the server (default: PEFTSERVE_URL or {DEFAULT_URL})",
    )
    add_key_argument(parser)


def add_key_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        default=os.environ.get("PEFTSERVE_API_KEY"),
        help="Bearer key (default: PEFTSERVE_API_KEY)",
    )


def _base(url: str) -> str:
    """Return a server's address, also where it is given as OpenAI's clients have it, with /v1 behind it."""
    return url.rstrip("/").removesuffix("/v1")


def headers(api_key: str | None) -> httpx.Headers:
    """Return the authorization header, none without a key. Raises CommandError for a key that no header can have."""
    if api_key and not api_key.isprintable():
        raise CommandError("--api-key: a key is of printable characters", USAGE)
    return httpx.Headers({"authorization": f"Bearer {api_key}"} if api_key else {}, encoding="utf-8")  # as servers do


@contextmanager
def making(url: str) -> Iterator[None]:
    """Raise CommandError, of a mistake, for a client or a request that cannot be made: nothing has been sent yet."""
    try:
        yield
    except httpx.InvalidURL as error:
        raise CommandError(f"{url!r} is no address of a server: {error}", USAGE) from None
    except ValueError as error:  # of what cannot be JSON, or UTF-8
        raise CommandError(f"this cannot be sent: {error}", USAGE) from None


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Raise CommandError where no answer comes, or one that breaks off."""
    try:
        yield
    except httpx.UnsupportedProtocol as error:
        raise CommandError(f"{url!r} is no address of a server: {error}", USAGE) from None
    except httpx.HTTPError as error:
        raise CommandError(f"no answer from {url}: {error}", UNREACHABLE) from None


class Server:
    """A running server. Calls return the parsed body or raise CommandError with the server's own message."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        with making(self.url):
            self._client = httpx.Client(base_url=self.url, headers=headers(api_key), timeout=_TIMEOUT)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Send a request and return the parsed body, None without one. Raises CommandError."""
        with self._answer(method, path, **options) as response:
            content = response.read()
        return self._parsed(content) if content else None

    def listed(self, path: str, method: str = "GET") -> list[dict[str, Any]]:
        """Send a request and return the list of objects that answers it. Raises CommandError."""
        body = self.call(method, path)
        data = body.get("data") if body else None
        if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
            raise self._stranger("what it answers is no list")
        return data

    def text(self, path: str) -> str:
        """Get what is no JSON, as text. Raises CommandError."""
        with self.download(path) as pieces:
            return b"".join(pieces).decode()

    @contextmanager
    def download(self, path: str) -> Iterator[Iterator[bytes]]:
        """Get what is no JSON, in pieces. Raises CommandError, also inside where the answer breaks off."""
        with self._answer("GET", path) as response:
            yield response.iter_bytes()

    def events(self, path: str, body: Any) -> Iterator[Any]:
        """Post a request and yield the events of its stream. To close the iterator is to leave. Raises CommandError."""
        with self._answer("POST", path, json=body) as response:
            yield from self._events(response.iter_lines())

    @contextmanager
    def _answer(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """Send a request and give its answer, a success, of which nothing is read yet.

        Raises CommandError, also inside where the answer breaks off.
        """
        with making(self.url):
            request = self._client.build_request(method, path, **options)
        with reaching(self.url), closing(self._client.send(request, stream=True)) as response:
            if not response.is_success:
                response.read()
                raise _refusal(response)
            yield response

    def _events(self, lines: Iterable[str]) -> Iterator[Any]:
        for line in lines:
            if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
                event = self._parsed(data)
                if "error" in event:
                    error = event["error"]
                    raise CommandError(str(error.get("message") if isinstance(error, dict) else error), FAILED)
                yield event

    def _parsed(self, text: str | bytes) -> dict[str, Any]:
        try:
            body = json.loads(text)
        except ValueError:
            raise self._stranger("what it answers is no JSON") from None
        if not isinstance(body, dict):
            raise self._stranger("what it answers is no object of JSON")
        return body

    def _stranger(self, why: str) -> CommandError:
        return CommandError(f"{self.url} is no peftserve server: {why}", FAILED)


def _refusal(response: httpx.Response) -> CommandError:
    try:
        code = response.json()["error"].get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        code = None
    return CommandError(message_of(response), FAILED, code if isinstance(code, str) else None)


def message_of(response: httpx.Response) -> str:
    """Return the message of OpenAI's error envelope, or else the status."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {response.status_code} {response.reason_phrase}"
