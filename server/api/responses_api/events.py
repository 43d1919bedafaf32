"""The events of a response that is streamed, as structs. sequence_number: set when an event is sent."""

import msgspec

from ..openai.event_stream import encode
from .structs import OutputItem, OutputText, ReasoningText, ResponseObject, Scores, SummaryText


class Event(msgspec.Struct, kw_only=True):
    """An event of a stream."""

    sequence_number: int = 0


class OfResponse(Event):
    """An event that has all of the response as it is by then."""

    response: ResponseObject


class ResponseCreated(OfResponse, tag="response.created"):
    """The first event."""


class ResponseInProgress(OfResponse, tag="response.in_progress"):
    """The second one."""


class ResponseCompleted(OfResponse, tag="response.completed"):
    """The last event of a whole answer."""


class ResponseIncomplete(OfResponse, tag="response.incomplete"):
    """The last event of an answer that reached a limit."""


class ResponseFailed(OfResponse, tag="response.failed"):
    """The last event of an answer that failed."""


class OfItem(Event):
    """An event of one item."""

    output_index: int


class OutputItemAdded(OfItem, tag="response.output_item.added"):
    """An item begins."""

    item: OutputItem


class OutputItemDone(OfItem, tag="response.output_item.done"):
    """An item is whole."""

    item: OutputItem


class InsideItem(OfItem):
    """An event inside an item."""

    item_id: str


class ArgumentsDelta(InsideItem, tag="response.function_call_arguments.delta"):
    """The next piece of a call's arguments."""

    delta: str


class ArgumentsDone(InsideItem, tag="response.function_call_arguments.done"):
    """All of a call's arguments."""

    name: str
    arguments: str


class OfPart(InsideItem, kw_only=True):
    """An event of one part of an item, of which there is one."""

    content_index: int = 0


class ContentPartAdded(OfPart, tag="response.content_part.added"):
    """A part begins."""

    part: OutputText | ReasoningText


class ContentPartDone(OfPart, tag="response.content_part.done"):
    """A part is whole."""

    part: OutputText | ReasoningText


class OutputTextDelta(OfPart, tag="response.output_text.delta"):
    """The next piece of the text."""

    delta: str
    logprobs: Scores = []


class OutputTextDone(OfPart, tag="response.output_text.done"):
    """All of the text."""

    text: str
    logprobs: Scores = []


class ReasoningTextDelta(OfPart, tag="response.reasoning_text.delta"):
    """The next piece of the reasoning."""

    delta: str


class ReasoningTextDone(OfPart, tag="response.reasoning_text.done"):
    """All of the reasoning."""

    text: str


class OfSummary(InsideItem, kw_only=True):
    """An event of an item's summary."""

    summary_index: int = 0


class SummaryPartAdded(OfSummary, tag="response.reasoning_summary_part.added"):
    """A summary begins."""

    part: SummaryText


class SummaryPartDone(OfSummary, tag="response.reasoning_summary_part.done"):
    """A summary is whole."""

    part: SummaryText


class SummaryTextDelta(OfSummary, tag="response.reasoning_summary_text.delta"):
    """The next piece of a summary."""

    delta: str


class SummaryTextDone(OfSummary, tag="response.reasoning_summary_text.done"):
    """All of a summary."""

    text: str


def event_frame(event: Event) -> bytes:
    """Return an event as it is sent, with its type as its name."""
    return b"event: %b\ndata: %b\n\n" % (str(event.__struct_config__.tag).encode(), encode(event))
