"""How prometheus-client writes the bound of a bucket, which it does not document."""

from collections.abc import Mapping

from prometheus_client.utils import floatToGoString as _written

NAMES: Mapping[str, str] = {
    "prometheus_client.utils.floatToGoString": (
        "The `le` label of a histogram's bucket, for histograms that take no lock. Other text would be another series "
        "to whoever scrapes. Instead: `repr` of the float, `+Inf` for infinity, and e+NN from a million on."
    ),
}


def bound_label(bound: float) -> str:
    """Return an upper bound as the library writes it, such as `0.5` or `+Inf`."""
    text: str = _written(bound)  # type: ignore[no-untyped-call]
    return text
