"""Errors of a chat that was made out of another API's body, told by the places of that body."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from peftserve.adapters.errors import AdapterError

from ..http.errors import ApiError

M = TypeVar("M", bound=BaseModel)

Place = tuple[int | str, ...]

_PLACES = re.compile(r"\b[a-z_]+(?:\.\w+|\[\d+\])+|\b[a-z]+(?:_[a-z]+)+")
_SAME: Mapping[str, str] = {}


def validate_at(model: type[M], value: Any, place: Place) -> M:
    """Return a part of a body as the model. Raises pydantic's ValidationError with the part's place in the body."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _moved(error, [(*place, *fault["loc"]) for fault in _faults(error)]) from None


@contextmanager
def told_as(names: Mapping[str, str]) -> Iterator[None]:
    """Rename the places in what is raised inside. names: a dotted place in a chat's body to the client's own."""
    try:
        yield
    except (ApiError, AdapterError) as error:
        holder = error.body if isinstance(error, ApiError) else error
        holder.message = _reworded(holder.message, names)
        if holder.param is not None:
            holder.param = rename(holder.param, names)
        raise
    except ValidationError as error:
        places = [".".join(map(str, fault["loc"])) for fault in _faults(error)]
        raise _moved(error, [(rename(place, names),) for place in places], names) from None


def tool_names(count: int, schema: str) -> Mapping[str, str]:
    """Return the places of a chat's tools to those in an API whose tools are flat. schema: its name there."""
    places = [place for number in range(count) for place in (f"tools.{number}", f"tools[{number}]")]
    return {
        **{f"{place}.function": place for place in places},
        **{f"{place}.function.parameters": f"{place}.{schema}" for place in places},
    }


def rename(place: str, names: Mapping[str, str]) -> str:
    """Return a place with the longest beginning that has another name renamed."""
    parts = place.split(".")
    for end in range(len(parts), 0, -1):
        name = names.get(".".join(parts[:end]))
        if name is not None:
            return ".".join([name, *parts[end:]])
    return place


def _faults(error: ValidationError) -> list[Any]:
    return list(error.errors(include_url=False, include_context=False))


def _reworded(message: str, names: Mapping[str, str]) -> str:
    """Rename what looks like a place inside of a message."""
    return _PLACES.sub(lambda found: rename(found[0], names), message)


def _moved(error: ValidationError, places: Sequence[Place], names: Mapping[str, str] = _SAME) -> ValidationError:
    """Return the same error with other places, and never with what was sent."""
    faults = [
        InitErrorDetails(
            type=PydanticCustomError(fault["type"], "{said}", {"said": _reworded(fault["msg"], names)}),
            loc=place,
            input=None,
        )
        for fault, place in zip(_faults(error), places, strict=True)
    ]
    return ValidationError.from_exception_data(error.title, faults)
