"""An adapter's files as they arrive: parsed from multipart piece by piece and written to the staged upload at once.

Nothing of a file is kept in memory but the piece at hand. Knows the form's fields; the library knows adapters.
"""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from peftserve.adapters.staging import StagedFile, StagedUpload

from ..http.errors import ApiError, bad_request
from ..http.threads import to_the_end
from .fields import settings_of

BLOCK = 1 << 20  # bytes gathered before a thread writes them
MAX_PARTS = 4096  # a folder with all that a trainer has left in it
MAX_HEADER_BYTES = 8192
# Bytes of each field that is no file.
MAX_FIELD_BYTES = {"name": 1024, "pinned": 16, "ttl": 64, "tags": 8 << 10, "metadata": 32 << 10}
WANTED = "send the field 'name' and two files, both with the field name 'files'"


class Received(NamedTuple):
    """The fields of an upload. settings: those of the name, as a merge patch that is yet to be checked."""

    name: str
    settings: dict[str, Any]


async def receive_upload(content_type: str, stream: AsyncIterator[bytes], staged: StagedUpload) -> Received:
    """Write the form's files into `staged` and return its fields. Raises ApiError, AdapterError."""
    form = _Form(staged)
    try:
        parser = _parser(content_type, form)
        async for block in _blocks(stream):
            await to_the_end(parser.write, block)
        await to_the_end(parser.finalize)
    except FormParserError:
        raise bad_request(f"The multipart body is malformed; {WANTED}.") from None
    finally:
        form.close()
    return form.result()


class _Form:
    """The parser's callbacks: one part at a time, a field into memory, a file to disk."""

    def __init__(self, staged: StagedUpload) -> None:
        self._staged = staged
        self._fields: dict[str, str] = {}
        self._num_parts = 0
        self._ended = False
        self._header = b""  # name of the header that is being read
        self._value = b""
        self._disposition = b""
        self._header_bytes = 0
        self._field = ""  # name of the part that is being read, if it is a field
        self._text = bytearray()  # and what it holds
        self._file: StagedFile | None = None  # and if it is a file

    def on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise bad_request(f"The form has too many parts; {WANTED}.")
        self._disposition = b""
        self._header_bytes = 0

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        field = options.get(b"name", b"").decode("utf-8", "replace")
        filename = options.get(b"filename")
        if field == "files" and filename is not None:
            self._file = self._staged.receive(filename.decode("utf-8", "replace"))
        elif field in MAX_FIELD_BYTES and filename is None and field not in self._fields:
            self._field = field
        else:
            raise bad_request(f"The form has an unexpected part {field[:64]!r}; {WANTED}.", field[:64] or None)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._file is not None:
            self._file.write(piece)
        elif self._field:
            self._text += piece
            if len(self._text) > MAX_FIELD_BYTES[self._field]:
                most = MAX_FIELD_BYTES[self._field]
                raise bad_request(f"The field {self._field!r} is over {most} bytes.", self._field)

    def on_part_end(self) -> None:
        if self._file is not None:
            self._file.close()
        elif self._field:
            self._fields[self._field] = self._text.decode("utf-8", "replace")
        self._file, self._field, self._text = None, "", bytearray()

    def on_end(self) -> None:
        self._ended = True

    def close(self) -> None:
        """Abandon a file that was cut off."""
        if self._file is not None:
            self._file.abandon()

    def result(self) -> Received:
        if not self._ended:
            raise bad_request(f"The multipart body ends too early; {WANTED}.")
        if "name" not in self._fields:
            raise bad_request(f"The field 'name' is missing; {WANTED}.", "name")
        return Received(self._fields.pop("name"), settings_of(self._fields))

    def _count(self, number: int) -> None:
        self._header_bytes += number
        if self._header_bytes > MAX_HEADER_BYTES:
            raise bad_request("The headers of a part of the form are too long.")


def _parser(content_type: str, form: _Form) -> MultipartParser:
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise ApiError(400, "The Content-Type of the form has no boundary.", param="Content-Type")
    names = ("on_part_begin", "on_header_field", "on_header_value", "on_header_end", "on_headers_finished")
    callbacks: Any = {name: getattr(form, name) for name in (*names, "on_part_data", "on_part_end", "on_end")}
    return MultipartParser(boundary, callbacks)


async def _blocks(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Join the stream's pieces to BLOCK bytes and more, so that few of them change threads."""
    gathered = bytearray()
    async for piece in stream:
        gathered += piece
        if len(gathered) >= BLOCK:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)
