"""The errors that an adapter can cause, worded for the person who uploads it.

AdapterError            any of these; `message` is safe to show to a client
├── InvalidAdapter      the checkpoint or its configuration is malformed or does not fit this base (400)
├── UnsupportedAdapter  well-formed, but of a kind that is not served (400)
├── AdapterNotFound     no adapter, version or route has this name (404)
├── AdapterConflict     the name is reserved, or two operations on it collide (409)
│   └── NameTaken       another tenant has the name
├── AdapterForbidden    there is such a name, and who asks may only use it (403)
├── AdapterTooLarge     over a size limit (413)
├── QuotaExceeded       over what its owner may keep (403)
├── AdapterDamaged      its files on the server's disk are not what was uploaded, or cannot be read (503)
├── AdapterFailed       the server could not compile or load it, for a reason that is not in its files (500)
├── NoMemoryForAdapter  the server had no memory to do so just then (503)
├── StateUnusable       the state folder's own files cannot be used; the server does not start
├── StoreFull           the disk has no room for it (503)
└── StoreFailed         the disk cannot be written to, for another reason (503)
"""

from collections.abc import Iterator
from contextlib import contextmanager


class AdapterError(Exception):
    """The base of all errors here.

    param: the request's field or the file at fault, if one is. It and the message can always be encoded as UTF-8.
    """

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


class NameTaken(AdapterConflict):
    pass


class AdapterForbidden(AdapterError):
    pass


class AdapterTooLarge(AdapterError):
    pass


class QuotaExceeded(AdapterError):
    pass


class AdapterDamaged(AdapterError):
    pass


class AdapterFailed(AdapterError):
    pass


class NoMemoryForAdapter(AdapterError):
    pass


class StateUnusable(AdapterError):
    pass


class StoreFull(AdapterError):
    pass


class StoreFailed(AdapterError):
    pass


def error_of(kind: str | None, message: str, param: str | None = None) -> AdapterError:
    """Return an error of the class with this name, as another process has raised it; an AdapterError if there is none.

    kind: name of a class in this module.
    """
    known = {error.__name__: error for error in AdapterError.__subclasses__()}
    return known.get(kind or "", AdapterError)(message, param=param)


@contextmanager
def prefix_errors(part: str) -> Iterator[None]:
    """Put the name of a part of the adapter before the message of any error inside. Empty: the adapter itself."""
    try:
        yield
    except AdapterError as error:
        raise type(error)(f"{part}: {error.message}" if part else error.message, param=error.param) from None


def _encodable(text: str) -> str:
    """Escape lone surrogates, which JSON can spell: messages quote what clients have sent."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
