"""What can be wrong with an adapter, as the person who uploads it would say it.

AdapterError            any of these; `message` is safe to show to a client
├── InvalidAdapter      the checkpoint or its configuration is malformed or does not fit this base (400)
├── UnsupportedAdapter  well-formed, but of a kind that is not served (400)
├── AdapterNotFound     no adapter, version or route has this name (404)
├── AdapterConflict     the name is reserved, or two operations on it collide (409)
├── AdapterTooLarge     over a size limit (413)
├── AdapterDamaged      its files on the server's disk are not what was uploaded (503)
├── StateUnusable       the state folder's own files cannot be used; the server does not start
└── StoreFull           the disk has no room for it (503)
"""

from collections.abc import Iterator
from contextlib import contextmanager


class AdapterError(Exception):
    """param: the request's field or the file at fault, if one is. Both are text that can be encoded as UTF-8."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = _encodable(message)
        self.param = None if param is None else _encodable(param)


class InvalidAdapter(AdapterError):
    pass


class UnsupportedAdapter(AdapterError):
    pass


class AdapterNotFound(AdapterError):
    pass


class AdapterConflict(AdapterError):
    pass


class AdapterTooLarge(AdapterError):
    pass


class AdapterDamaged(AdapterError):
    pass


class StateUnusable(AdapterError):
    pass


class StoreFull(AdapterError):
    pass


def error_of(kind: str | None, message: str, param: str | None = None) -> AdapterError:
    """The error of a class by its name, as another process has met it; of a name that is not here, an AdapterError."""
    known = {error.__name__: error for error in AdapterError.__subclasses__()}
    return known.get(kind or "", AdapterError)(message, param=param)


@contextmanager
def prefix_errors(part: str) -> Iterator[None]:
    """Put what is wrong inside down to one part of the adapter; the empty name is the adapter itself."""
    try:
        yield
    except AdapterError as error:
        raise type(error)(f"{part}: {error.message}" if part else error.message, param=error.param) from None


def _encodable(text: str) -> str:
    """JSON can spell lone surrogates, and messages quote what clients sent."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
