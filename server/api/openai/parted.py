"""The one message of a generation, step by step: deltas of its sequence, each with the parts that its text brings."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from ..assistant.parts import Parts
from .chat_parts import ChatParts
from .generation import Generation
from .text_deltas import Delta

PartedStep = list[tuple[Delta, Parts]]


async def parted(generation: Generation) -> AsyncGenerator[PartedStep]:
    """Yield the deltas of the first sequence with their parts, each time all that have come.

    To be closed. Raises EngineDead, ApiError.
    """
    parts = ChatParts(generation.plan)
    async with aclosing(generation.deltas()) as steps:
        async for deltas in steps:
            yield [(delta, parts.take(index, delta)) for index, delta in deltas]
