"""The command line's client of a running server: one httpx client, and its errors as sentences."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from .errors import FAILED, UNREACHABLE, CommandError

DEFAULT_URL = "http://127.0.0.1:8000"
_TIMEOUT = httpx.Timeout(300.0, connect=10.0)  # the answer to an upload comes when the adapter has been checked


def add_arguments(parser: argparse.ArgumentParser, url_flag: str = "--url") -> None:
    """Add the flags that set `url` and `api_key`."""
    parser.add_argument(
        url_flag,
        dest="url",
        default=os.environ.get("PEFTSERVE_URL", DEFAULT_URL),
        help=f"the server (default: PEFTSERVE_URL or {DEFAULT_URL})",
    )
    add_key_argument(parser)


def add_key_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--api-key", default=os.environ.get("PEFTSERVE_API_KEY"), help="Bearer key (default: PEFTSERVE_API_KEY)"
    )


def headers(api_key: str | None) -> dict[str, str]:
    """Return the authorization header, none without a key."""
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


class Server:
    """A running server. Calls return the parsed body or raise CommandError with the server's own message."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._client = httpx.Client(base_url=self.url, headers=headers(api_key), timeout=_TIMEOUT)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Send a request and return the parsed body, None without one. Raises CommandError."""
        try:
            response = self._client.request(method, path, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CommandError(f"no answer from {self.url}: {error}", UNREACHABLE) from None
        if response.is_error:
            raise CommandError(message_of(response), FAILED)
        return response.json() if response.content else None

    @contextmanager
    def download(self, path: str) -> Iterator[Iterator[bytes]]:
        """Get what is no JSON, in pieces. Raises CommandError, also inside where the answer breaks off."""
        try:
            with self._client.stream("GET", path) as response:
                if response.is_error:
                    response.read()
                    raise CommandError(message_of(response), FAILED)
                yield response.iter_bytes()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CommandError(f"no answer from {self.url}: {error}", UNREACHABLE) from None


def message_of(response: httpx.Response) -> str:
    """Return the message of OpenAI's error envelope, or else the status."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {response.status_code} {response.reason_phrase}"
