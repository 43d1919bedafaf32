"""Why a model is refused at start."""

_MOST = 240  # characters of what a library says


class UnservableModel(Exception):
    """The message completes the sentence "this model cannot be served: …"."""


def reason_of(error: BaseException) -> str:
    """Return what an error says, on one line of a readable length. Its class comes first, unless it is ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    if not isinstance(error, UnservableModel):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"
