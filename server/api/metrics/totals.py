"""The sum of the metrics of several processes, which are one server's: counters and histograms add up."""

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from ...wire.control import Sample

Samples = Mapping[str, Sequence[Sample]]  # family to samples
_Key = tuple[str, tuple[tuple[str, str], ...]]

CREATED = "_created"  # the end of the names of samples that are times: the earliest stands for all


def samples_of(registry: CollectorRegistry) -> dict[str, list[Sample]]:
    """Return the samples of a registry by family."""
    return {
        family.name: [(sample.name, sample.labels, sample.value) for sample in family.samples]
        for family in registry.collect()
    }


def summed(parts: Iterable[Samples]) -> dict[str, list[Sample]]:
    """Return the sum of all parts, sample by sample."""
    families: dict[str, dict[_Key, float]] = {}
    for part in parts:
        for name, samples in part.items():
            _add(families.setdefault(name, {}), samples)
    return {
        name: [(sample, dict(labels), value) for (sample, labels), value in samples.items()]
        for name, samples in families.items()
    }


def with_samples(registry: CollectorRegistry, others: Sequence[Samples]) -> Iterable[Metric]:
    """Yield a registry's families, with the samples of other processes added."""
    total = summed([samples_of(registry), *others])
    for family in registry.collect():
        whole = Metric(family.name, family.documentation, family.type)
        for name, labels, value in total[family.name]:
            whole.add_sample(name, labels, value)
        yield whole


def _add(total: dict[_Key, float], samples: Sequence[Sample]) -> None:
    for name, labels, value in samples:
        key = name, tuple(labels.items())
        known = total.get(key)
        if known is None:
            total[key] = value
        else:
            total[key] = min(known, value) if name.endswith(CREATED) else known + value
