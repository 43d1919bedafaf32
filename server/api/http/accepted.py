"""What `Accept` and `Accept-Encoding` say of a choice (RFC 9110, section 12.4.2). Knows their grammar only."""

from collections.abc import Iterable


def qualities(values: Iterable[str]) -> dict[str, float]:
    """Return each name in lower case with its quality: 1 unless its `q` says otherwise, 0 for one that is no number.

    values: of the header, which may come several times.
    """
    found: dict[str, float] = {}
    for item in ",".join(values).split(","):
        name, *parameters = item.split(";")
        if name.strip():
            found[name.strip().lower()] = min((_quality(each) for each in parameters), default=1.0)
    return found


def _quality(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    if name.strip().lower() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0
