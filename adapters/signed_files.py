"""Small files of JSON beside the registry, each with the SHA-256 of its content: whole, or not to be believed."""

import hashlib
import os
import secrets
from pathlib import Path
from typing import TypeVar

import msgspec

_T = TypeVar("_T")


class _Signed(msgspec.Struct):
    sha256: str
    record: msgspec.Raw


def write_signed(path: Path, content: object, *, durable: bool = True) -> None:
    """Write a file of JSON with its SHA-256, whole or not at all. Raises OSError."""
    record = msgspec.json.encode(content)
    text = msgspec.json.encode(_Signed(hashlib.sha256(record).hexdigest(), msgspec.Raw(record)))
    new = path.with_name(f".{secrets.token_hex(8)}")
    try:
        with new.open("xb") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def read_signed(path: Path, kind: type[_T]) -> _T | None:
    """Read what `write_signed` has written; None where it is missing, damaged or of another kind."""
    try:
        signed = msgspec.json.decode(path.read_bytes(), type=_Signed)
        if hashlib.sha256(signed.record).hexdigest() == signed.sha256:
            return msgspec.json.decode(signed.record, type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeError):
        pass
    return None
