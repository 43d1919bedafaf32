"""The files of the adapter: its configuration as PEFT writes one, and its tensors."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from peftserve.adapters.peft.keys import PREFIX
from peftserve.adapters.sites import Site, SiteKind

from ..shards import Entry
from .choice import Choice
from .forms import FLOAT, INDEX, Changed, Form, LowRank, Sparse
from .pair import Pair


class Written(NamedTuple):
    """One tensor of the adapter, made when it is written."""

    entry: Entry
    make: Callable[[], torch.Tensor]


class Adapter:
    """An adapter that is decided on. changed: the modules that differ, a tied head among them."""

    def __init__(self, choice: Choice, changed: Sequence[Changed], pair: Pair) -> None:
        self._choice = choice
        self._pair = pair
        self._changed = {one.site.name: one for one in changed}
        self._own = self._named(Form.LOW_RANK) + self._named(Form.SPARSE)
        self._saved = self._named(Form.WHOLE)
        if choice.method == "LN_TUNING":
            self._own = [next(n for n in self._saved if self._site(n).kind in (SiteKind.NORM, SiteKind.LINEAR))]
            self._saved = [name for name in self._saved if name not in self._own]

    def config(self, base: str) -> dict[str, Any]:
        """Return adapter_config.json. base: the name of the base."""
        fields: dict[str, Any] = {
            "peft_type": self._choice.method,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "inference_mode": True,
        }
        return fields | _FIELDS[self._choice.method](self)

    def tensors(self) -> Iterator[Written]:
        """Yield the tensors with their keys."""
        for name, form in self._choice.forms.items():
            yield from _TENSORS[form](self, self._changed[name])
        if (spare := self._choice.spare) is not None:
            shapes = {"lora_A": (1, spare.in_features), "lora_B": (spare.out_features, 1)}
            for part, shape in shapes.items():
                yield _written(f"{spare.name}.{part}.weight", torch.zeros(shape))
            if self._has_bias:
                yield _written(f"{spare.name}.lora_B.bias", torch.zeros(spare.out_features))

    def _named(self, form: Form) -> list[str]:
        return [name for name, own in self._choice.forms.items() if own is form]

    def _site(self, name: str) -> Site:
        return self._pair.table.sites[name]

    @property
    def _has_bias(self) -> bool:
        low_rank = [self._changed[name].low_rank for name in self._named(Form.LOW_RANK)]
        return any(one is not None and one.bias is not None for one in low_rank)

    def _low_rank_fields(self) -> dict[str, Any]:
        ranks = {name: len(_low_rank(self._changed[name]).a) for name in self._named(Form.LOW_RANK)}
        targets = self._own or [site.name for site in (self._choice.spare,) if site is not None]
        most = max(ranks.values(), default=1)
        others = {re.escape(name): rank for name, rank in ranks.items() if rank != most}
        rows = {name: self._ids(name) for name in self._named(Form.ROWS)}
        return {
            "r": most,
            "lora_alpha": most,
            "rank_pattern": others,
            "alpha_pattern": others,
            "lora_bias": self._has_bias,
            "target_modules": targets,
            "modules_to_save": self._saved or None,
            "trainable_token_indices": rows or None,
        }

    def _sparse_fields(self) -> dict[str, Any]:
        return {"r": self._choice.rank, "target_modules": self._own, "modules_to_save": self._saved or None}

    def _whole_fields(self) -> dict[str, Any]:
        return {"target_modules": self._own, "modules_to_save": self._saved or None}

    def _token_fields(self) -> dict[str, Any]:
        (name,) = self._named(Form.ROWS)
        return {"target_modules": [name], "token_indices": self._ids(name)}

    def _ids(self, name: str) -> list[int]:
        rows = self._changed[name].rows
        assert rows is not None
        return [int(i) for i in rows.ids.tolist()]

    def _whole_tensors(self, one: Changed) -> Iterator[Written]:
        part = "ln_tuning_layers." if one.site.name in self._own else ""
        for leaf in ("weight", "bias"):
            if (name := f"{one.site.name}.{leaf}") in self._pair.base.own:
                tensors = self._pair.read(name)
                entry = Entry(f"{PREFIX}{one.site.name}.{part}{leaf}", tensors.dtype, tuple(tensors.after.shape))
                yield Written(entry, partial(self._tuned, name))

    def _tuned(self, name: str) -> torch.Tensor:
        return self._pair.read(name).after

    def _low_rank_tensors(self, one: Changed) -> Iterator[Written]:
        low_rank = _low_rank(one)
        yield _written(f"{one.site.name}.lora_A.weight", low_rank.a)
        yield _written(f"{one.site.name}.lora_B.weight", low_rank.b)
        if self._has_bias:
            bias = torch.zeros(one.site.out_features) if low_rank.bias is None else low_rank.bias
            yield _written(f"{one.site.name}.lora_B.bias", bias)

    def _row_tensors(self, one: Changed) -> Iterator[Written]:
        assert one.rows is not None
        part = "" if self._choice.method == "TRAINABLE_TOKENS" else "token_adapter."
        yield _written(f"{one.site.name}.{part}trainable_tokens_delta", one.rows.values, one.rows.dtype)

    def _sparse_tensors(self, one: Changed) -> Iterator[Written]:
        assert one.sparse is not None
        count = self._choice.rank * (one.site.in_features + one.site.out_features)
        places, values = _filled(one.sparse, count, one.site)
        yield _written(f"{one.site.name}.shira_weight", values)
        yield _written(f"{one.site.name}.shira_indices", places, INDEX)


_FIELDS: Mapping[str, Callable[[Adapter], dict[str, Any]]] = {
    "LORA": Adapter._low_rank_fields,
    "SHIRA": Adapter._sparse_fields,
    "LN_TUNING": Adapter._whole_fields,
    "TRAINABLE_TOKENS": Adapter._token_fields,
}
_TENSORS: Mapping[Form, Callable[[Adapter, Changed], Iterator[Written]]] = {
    Form.WHOLE: Adapter._whole_tensors,
    Form.LOW_RANK: Adapter._low_rank_tensors,
    Form.ROWS: Adapter._row_tensors,
    Form.SPARSE: Adapter._sparse_tensors,
}


def _low_rank(one: Changed) -> LowRank:
    assert one.low_rank is not None
    return one.low_rank


def _written(name: str, tensor: torch.Tensor, dtype: torch.dtype = FLOAT) -> Written:
    return Written(Entry(f"{PREFIX}{name}", dtype, tuple(tensor.shape)), lambda: tensor)


def _filled(sparse: Sparse, count: int, site: Site) -> tuple[torch.Tensor, torch.Tensor]:
    """Return places and values of exactly so many entries: zeros where the weight is as it was are added."""
    lacking = count - len(sparse.values)
    taken = sparse.places[0].long() * site.in_features + sparse.places[1]
    free = torch.ones(min(count, site.in_features * site.out_features), dtype=torch.bool)
    free[taken[taken < len(free)]] = False
    more = free.nonzero().flatten()[:lacking]
    places = torch.stack([more // site.in_features, more % site.in_features]).to(INDEX)
    return torch.cat([sparse.places, places], dim=1), torch.cat([sparse.values, torch.zeros(len(more))])
