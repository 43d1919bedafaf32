"""The settings of an adapter's name: what people set beside its files. Knows their form; knows no registry."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from .errors import InvalidAdapter
from .merge_patch import merge_patch

MAX_TAGS = 32
MAX_TAG_LENGTH = 64
MAX_METADATA_BYTES = 16 << 10
MAX_TTL = 10 * 365 * 86_400.0  # seconds


class Settings(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The settings of a name, for all of its versions.

    pinned: it never leaves the device. ttl: seconds from the last upload or change of settings to its deletion.
    """

    pinned: bool = False
    ttl: float | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}

    def patched(self, patch: Mapping[str, Any]) -> "Settings":
        """Return these settings with those of a merge patch. Raises InvalidAdapter."""
        return parse_settings(merge_patch(msgspec.to_builtins(self), patch))

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()


def parse_settings(fields: Mapping[str, Any]) -> Settings:
    """Check fields as a client gives them. Raises InvalidAdapter, which names the field at fault."""
    for name in fields.keys() - set(Settings.__struct_fields__):
        raise InvalidAdapter(f"{name[:64]!r} is no setting: there are pinned, ttl, tags and metadata", param=name[:64])
    _check_pinned(fields.get("pinned", False))
    _check_ttl(fields.get("ttl"))
    _check_tags(fields.get("tags", ()))
    _check_metadata(fields.get("metadata", {}))
    tags = tuple(dict.fromkeys(fields.get("tags", ())))
    return msgspec.convert({**fields, "tags": tags}, Settings)


def read_settings(text: str) -> Settings:
    """Read what a release has stored. Raises ValueError, InvalidAdapter for any other text."""
    return parse_settings(msgspec.json.decode(text, type=dict[str, Any]))


def _check_pinned(pinned: Any) -> None:
    if not isinstance(pinned, bool):
        raise InvalidAdapter("pinned must be true or false", param="pinned")


def _check_ttl(ttl: Any) -> None:
    if ttl is None:
        return
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 < ttl <= MAX_TTL:
        raise InvalidAdapter(
            f"ttl must be a number of seconds over 0 and up to {MAX_TTL:.0f}, or null for none", param="ttl"
        )


def _check_tags(tags: Any) -> None:
    wanted = f"tags must be a list of at most {MAX_TAGS} texts of 1 to {MAX_TAG_LENGTH} printable characters"
    if not isinstance(tags, list | tuple) or len(tags) > MAX_TAGS:
        raise InvalidAdapter(wanted, param="tags")
    for tag in tags:
        if not isinstance(tag, str) or not 0 < len(tag) <= MAX_TAG_LENGTH or not tag.isprintable():
            raise InvalidAdapter(wanted, param="tags")


def _check_metadata(metadata: Any) -> None:
    """Check that it can be kept and given back as it is. Raises InvalidAdapter."""
    if not isinstance(metadata, dict):
        raise InvalidAdapter("metadata must be a JSON object", param="metadata")
    try:
        json.dumps(metadata, allow_nan=False)
        text = msgspec.json.encode(metadata)
        is_kept = msgspec.json.decode(text) == metadata
    except RecursionError:
        raise InvalidAdapter("metadata is nested too deeply", param="metadata") from None
    except (ValueError, OverflowError, TypeError):  # NaN, half a character, a number with thousands of digits
        is_kept = False
    if not is_kept:
        raise InvalidAdapter("metadata holds a number or a text that JSON cannot give back", param="metadata")
    if len(text) > MAX_METADATA_BYTES:
        raise InvalidAdapter(
            f"metadata takes {len(text)} bytes as JSON; {MAX_METADATA_BYTES} are allowed", param="metadata"
        )
