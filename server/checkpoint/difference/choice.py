"""Which form each module gets: an adapter has one method of PEFT, so that not every module can have its smallest.

    TRAINABLE_TOKENS  rows, and nothing else
    LN_TUNING         modules saved whole, of which one is the method's own
    LORA              low rank, rows, modules saved whole
    SHIRA             sparse, modules saved whole

The choice is by bytes. Where LORA has nothing of a low rank, one module that is as it was gets zeros. A head that is
tied to an embedding follows its rows; saved whole, PEFT wants both.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from peftserve.adapters.sites import Site, SiteKind

from .forms import ENTRY_BYTES, FLOAT, Changed, Form

_NEITHER = (SiteKind.EMBEDDING, SiteKind.HEAD)


@dataclass(frozen=True)
class Difference:
    """All that differs. changed: the modules, without a head that is tied to one of them, the `embedding`: its twin.

    spare: the smallest linear that is as it was; None if there is none.
    """

    changed: Sequence[Changed]
    twin: Changed | None = None
    embedding: str = ""
    spare: Site | None = None


@dataclass(frozen=True)
class Choice:
    """method: of PEFT. forms: site to its form.

    rank: of SHIRA, for all modules; else 0. spare: the module that gets zeros; None for no such.
    """

    method: str
    forms: Mapping[str, Form]
    num_bytes: int
    rank: int = 0
    spare: Site | None = None


def choose(difference: Difference) -> Choice | None:
    """Return the choice of the fewest bytes, of equals the first; None where no method of PEFT has all of it."""
    choices = [choice for plan in PLANS for choice in plan(difference)]
    return min(choices, key=lambda choice: choice.num_bytes, default=None)


def _tokens(difference: Difference) -> Iterator[Choice]:
    if len(difference.changed) == 1 and (rows := difference.changed[0].rows) is not None:
        yield Choice("TRAINABLE_TOKENS", {difference.changed[0].site.name: Form.ROWS}, rows.num_bytes)


def _whole(difference: Difference) -> Iterator[Choice]:
    forms, total = _with_twin(difference, {one.site.name: Form.WHOLE for one in difference.changed})
    if any(one.site.kind not in _NEITHER for one in difference.changed):
        yield Choice("LN_TUNING", forms, total + sum(one.whole_bytes for one in difference.changed))


def _lora(difference: Difference) -> Iterator[Choice]:
    forms, total = {}, 0
    for one in difference.changed:
        sizes = {Form.WHOLE: one.whole_bytes}
        if one.low_rank is not None:
            sizes[Form.LOW_RANK] = one.low_rank.num_bytes
        if one.rows is not None:
            sizes[Form.ROWS] = one.rows.num_bytes
        forms[one.site.name] = form = min(sizes, key=lambda form: sizes[form])
        total += sizes[form]
    if forms.get(difference.embedding) is not Form.ROWS:
        forms, more = _with_twin(difference, forms)
        total += more
    spare = None if Form.LOW_RANK in forms.values() else difference.spare
    if spare is not None:
        total += FLOAT.itemsize * (spare.in_features + spare.out_features)
    if spare is not None or Form.LOW_RANK in forms.values():
        yield Choice("LORA", forms, total, spare=spare)


def _shira(difference: Difference) -> Iterator[Choice]:
    """Yield a choice for each number of entries that is enough for one module more."""
    ranks = {one.sparse.rank_for(one.site) for one in difference.changed if one.sparse is not None}
    for rank in sorted(ranks):
        forms, total = {}, 0
        for one in difference.changed:
            size = rank * (one.site.in_features + one.site.out_features) * ENTRY_BYTES
            fits = one.sparse is not None and one.sparse.rank_for(one.site) <= rank and size < one.whole_bytes
            forms[one.site.name] = Form.SPARSE if fits else Form.WHOLE
            total += size if fits else one.whole_bytes
        forms, more = _with_twin(difference, forms)
        if Form.SPARSE in forms.values():
            yield Choice("SHIRA", forms, total + more, rank=rank)


def _with_twin(difference: Difference, forms: Mapping[str, Form]) -> tuple[dict[str, Form], int]:
    """Return the forms with a head that is saved by itself, and what it takes."""
    twin = difference.twin
    return ({**forms}, 0) if twin is None else ({**forms, twin.site.name: Form.WHOLE}, twin.whole_bytes)


PLANS: Sequence[Callable[[Difference], Iterable[Choice]]] = (_tokens, _whole, _lora, _shira)
