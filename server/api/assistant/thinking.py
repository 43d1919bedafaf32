"""How models write down what they think before they answer, and the table of the ways."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .harmony import CHANNEL, END, MARKS, MESSAGE, harmony
from .output import Output
from .source import Source, Steps


@dataclass(frozen=True)
class Thinking:
    """A model's way. begin, end: the marks around what it thinks.

    read: reads it from a message's text; the last argument says whether the prompt has the first mark already.
    assumed: the model leaves out the first mark. others: marks that are read beside them.
    """

    begin: str
    end: str
    assumed: bool = False
    read: "Callable[[Thinking, Source, Output, bool], Steps[None]] | None" = None
    others: frozenset[str] = frozenset()

    @property
    def marks(self) -> frozenset[str]:
        return self.others | {self.begin, self.end}

    def is_open(self, prompt: str, goes_on: bool = False) -> bool:
        """Return whether what comes behind a prompt is thought. goes_on: the prompt ends within the message."""
        if goes_on:
            return prompt.rfind(self.begin) > prompt.rfind(self.end)
        end = prompt.rstrip()
        return end.endswith(self.begin) or (self.assumed and not end.endswith(self.end))

    def is_closed(self, prompt: str) -> bool:
        """Return whether a prompt says that nothing is to be thought: it has both marks."""
        return self.read is None and prompt.rstrip().endswith(self.end)

    def reading(self, source: Source, output: Output, is_open: bool) -> Steps[None]:
        """Take what was thought, with its marks, and leave what follows."""
        return (self.read or _between_marks)(self, source, output, is_open)


def _between_marks(thinking: Thinking, source: Source, output: Output, is_open: bool) -> Steps[None]:
    if not is_open:
        spaces = yield from source.spaces()
        if not (yield from source.skip(thinking.begin)):
            output.content(spaces)
            return
    else:
        yield from source.spaces()
        yield from source.skip(thinking.begin)  # some models repeat the prompt's
    yield from source.up_to((thinking.end,), output.reasoning)
    yield from source.spaces()


def _channels(thinking: Thinking, source: Source, output: Output, is_open: bool) -> Steps[None]:
    yield from harmony(source, output)


_THINK = Thinking("<think>", "</think>")

THINKING: Mapping[str, Thinking] = {
    "qwen3": _THINK,
    "deepseek_r1": Thinking("<think>", "</think>", assumed=True),
    "mistral": Thinking("[THINK]", "[/THINK]"),
    "openai_gptoss": Thinking(CHANNEL, END, read=_channels, others=MARKS),
}
"""Names as vLLM has them to the ways."""

_SIGNS = (("openai_gptoss", (CHANNEL, MESSAGE)), ("mistral", ("[THINK]",)), ("qwen3", ("<think>",)))

AUTO, NONE = "auto", "none"
CHOICES = (AUTO, NONE, *THINKING)


def find_thinking(choice: str, template: str | None) -> Thinking | None:
    """Return the way of a model by the operator's choice, with `auto` by the marks in its template."""
    if choice != AUTO:
        return THINKING.get(choice)
    name = next((name for name, signs in _SIGNS if all(sign in (template or "") for sign in signs)), NONE)
    return THINKING.get(name)
