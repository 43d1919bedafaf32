"""uvicorn's HTTP/1.1 protocol on httptools, which the connections of an API process extend.

uvicorn documents its command line, its configuration and `Server`; its protocols may be named, but what is in them is
its own. Instead of all of it: a parser of ours on httptools, with ASGI's messages made by hand.
"""

from collections.abc import Mapping

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

__all__ = ["STATUS_LINE", "UvicornHttp"]

_MODULE = "uvicorn.protocols.http.httptools_impl"
_PROTOCOL = f"{_MODULE}.HttpToolsProtocol"
_CYCLE = f"{_MODULE}.RequestResponseCycle"
_FLOW = "uvicorn.protocols.http.flow_control.FlowControl"
_CALLBACKS = ("data_received", "on_message_begin", "on_headers_complete", "on_body", "on_message_complete")
_CONNECTION = ("connection_made", "connection_lost", "on_response_complete")
_STATE = ("self.parser", "self.headers", "self.url", "self.scope", "self.pipeline", "self.cycle", "self.flow")
_PLACE = ("self.server_state", "self.transport", "self.client", "self.loop", "self.tasks")
_RESPONSE = ("self.response_complete", "self.response_started", "self.keep_alive")
_END = ("self.disconnected", "self.message_event")
_READING = ("pause_reading", "resume_reading", "self.read_paused")
_SERVER = ("self.started", "self.should_exit", "self.force_exit")

NAMES: Mapping[str, str] = {
    f"{_MODULE}.STATUS_LINE": (
        "The first line of an answer, by its status, for clients that are refused before a route sees them. Instead: "
        "http.HTTPStatus, whose phrases are the same."
    ),
    f"{_MODULE}.HttpToolsProtocol": "The protocol itself.",
    f"all(hasattr({_PROTOCOL}, name) for name in {_CALLBACKS})": (
        "What is called for bytes and by the parser, extended to count bytes and headers, and to see where in a "
        "request a connection is."
    ),
    f"all(hasattr({_PROTOCOL}, name) for name in {_CONNECTION})": (
        "The beginnings and ends of connections and answers, at which a connection takes and gives back its place."
    ),
    f"'on_response=self.on_response_complete' in inspect.getsource({_PROTOCOL})": (
        "What is called at the end of an answer is looked up in the connection, so that ours is called."
    ),
    f"{_CYCLE}.run_asgi": (
        "Begins the next request of a connection at the end of an answer, as uvicorn does but without its timer for "
        "idle connections, since ours looks at all of them at once. Instead: its timer, and no limits on idle ones."
    ),
    f"all(name in inspect.getsource({_PROTOCOL}) for name in {_STATE})": (
        "The state of a connection: what was parsed, the requests that wait, and whether it is read."
    ),
    f"all(name in inspect.getsource({_PROTOCOL}) for name in {_PLACE})": "Where a connection is, and what it counts.",
    f"all(name in inspect.getsource({_CYCLE}) for name in {_RESPONSE + _END})": (
        "The state of an answer: clients may be refused while they are answered. Instead: ASGI's messages, watched in "
        "a wrapper of `send`."
    ),
    f"all(name in inspect.getsource({_FLOW}) for name in {_READING})": (
        "Stops the reading of a connection that is refused, and tells whether the server reads. Instead: the "
        "transport's own methods, which do not know who else has stopped it."
    ),
    "'self.http_protocol_class = self.http' in inspect.getsource(uvicorn.Config.load)": (
        "Takes a factory of protocols where a class is documented, so that connections know each other. Instead: a "
        "class made for each server."
    ),
    f"all(name in inspect.getsource(uvicorn.Server) for name in {_SERVER})": (
        "Tells that the server listens, and asks it to end. Instead: a wait for the port, and signals."
    ),
    "uvicorn.Server.capture_signals": (
        "Left out: its way out closes the port before the grace time. Instead: `serve` with signals taken back after "
        "it has begun."
    ),
}


class UvicornHttp(HttpToolsProtocol):
    """uvicorn's protocol, with a method for what it does only together with its timer for idle connections."""

    def start_next_request(self) -> bool:
        """Begin the oldest request that waits on this connection; return False if none does."""
        if not self.pipeline:
            return False
        cycle, app = self.pipeline.pop()
        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
        return True
