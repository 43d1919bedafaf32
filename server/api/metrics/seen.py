"""The metrics as one tenant sees them: series that name what is not there for it are left out."""

from collections.abc import Callable, Iterable

from prometheus_client.core import Metric

NAMES = ("adapter", "adapter_name", "route", "arm", "tenant")
LISTS = ("running_lora_adapters", "waiting_lora_adapters")  # of names, with commas between

IsSeen = Callable[[str, str], bool]
"""Return whether a label's value, under the label's name, is there for who asks."""


def seen(families: Iterable[Metric], is_seen: IsSeen) -> Iterable[Metric]:
    """Yield families with those of their samples that name nothing else, and lists without it."""
    for family in families:
        shown = Metric(family.name, family.documentation, family.type)
        for sample in family.samples:
            if all(is_seen(label, sample.labels[label]) for label in NAMES if label in sample.labels):
                shown.samples.append(sample._replace(labels={**sample.labels, **_lists(sample.labels, is_seen)}))
        yield shown


def _lists(labels: dict[str, str], is_seen: IsSeen) -> dict[str, str]:
    return {
        label: ",".join(name for name in labels[label].split(",") if name and is_seen("adapter", name))
        for label in LISTS
        if label in labels
    }
