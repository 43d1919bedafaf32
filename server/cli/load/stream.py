"""One request over HTTP: its event stream read to the end, with the time of every chunk that has a token."""

import json
import time
from typing import Any

import httpx

from .measure import Measurement


async def ask(http: httpx.AsyncClient, body: bytes, measurement: Measurement) -> None:
    """Fills the measurement in. What the server or the connection fails at is the measurement's error."""
    try:
        async with http.stream("POST", "/v1/completions", content=body) as response:
            if response.is_error:
                measurement.error = (await response.aread()).decode(errors="replace")[:500]
            else:
                async for line in response.aiter_lines():
                    _take(line, measurement)
    except (httpx.HTTPError, ValueError) as error:
        measurement.error = repr(error)
    if not measurement.chunks:
        measurement.error = measurement.error or "the answer had no token"
    measurement.end = time.perf_counter()


def _take(line: str, measurement: Measurement) -> None:
    """One line of the event stream."""
    if not line.startswith("data:") or (data := line[5:].strip()) == "[DONE]":
        return
    event = json.loads(data)
    if "error" in event:
        measurement.error = _message(event["error"])
    if any(choice.get("text") or choice.get("token_ids") for choice in event.get("choices") or ()):
        measurement.chunks.append(time.perf_counter())
    if usage := event.get("usage"):
        measurement.completion_tokens = usage["completion_tokens"]
        measurement.prompt_tokens = usage.get("prompt_tokens", 0)


def _message(error: Any) -> str:
    return str(error.get("message")) if isinstance(error, dict) else str(error)
