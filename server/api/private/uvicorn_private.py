"""uvicorn's HTTP/1.1 protocol on httptools, which the connections of an API process extend.

uvicorn documents its command line, its configuration and `Server`; its protocols may be named, but what is in them is
its own. Instead of all of it: a parser of ours on httptools, with ASGI's messages made by hand.
"""

from collections.abc import Mapping

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

__all__ = ["STATUS_LINE", "HttpToolsProtocol"]

_MODULE = "uvicorn.protocols.http.httptools_impl"
_PROTOCOL = f"{_MODULE}.HttpToolsProtocol"
_CYCLE = f"{_MODULE}.RequestResponseCycle"
_CALLBACKS = ("on_message_begin", "on_headers_complete", "on_body", "on_message_complete", "on_response_complete")
_STATE = ("self.parser", "self.headers", "self.url", "self.scope", "self.pipeline", "self.cycle", "self.flow")
_PLACE = ("self.server_state", "self.transport", "self.client", "self.loop")
_ANSWER = ("self.response_complete", "self.response_started", "self.disconnected", "self.message_event", "self.keep_alive")

NAMES: Mapping[str, str] = {
    f"{_MODULE}.STATUS_LINE": (
        "The first line of an answer, by its status, for clients that are refused before a route sees them. Instead: "
        "http.HTTPStatus, whose phrases are the same."
    ),
    f"{_MODULE}.HttpToolsProtocol": "The protocol itself.",
    f"all(hasattr({_PROTOCOL}, name) for name in {_CALLBACKS})": (
        "What the parser calls, extended to count bytes and headers, and to see where in a request a connection is."
    ),
    f"{_PROTOCOL}._start_asgi_task": (
        "Begins the next request of a connection, at the end of an answer: that is uvicorn's own without its timer for "
        "idle connections, since ours looks at all of them at once. Instead: its timer, and no limits on idle ones."
    ),
    f"all(name in inspect.getsource({_PROTOCOL}) for name in {_STATE})": (
        "The state of a connection: what was parsed, the requests that wait, and whether it is read."
    ),
    f"all(name in inspect.getsource({_PROTOCOL}) for name in {_PLACE})": "Where a connection is, and what it counts.",
    f"all(name in inspect.getsource({_CYCLE}) for name in {_ANSWER})": (
        "The state of an answer: clients may be refused while they are answered. Instead: ASGI's messages, watched in "
        "a wrapper of `send`."
    ),
    "uvicorn.Server.capture_signals": (
        "Left out: its way out closes the port before the grace time. Instead: `serve` with signals taken back after it "
        "has begun."
    ),
}
