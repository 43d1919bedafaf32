"""The sites of a base without its weights, from the passes by which the engine finds them.

All weights are zeros that take no memory, and products with them are not computed: which modules see which rows, and
which share an input, does not depend on numbers.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel

from peftserve.adapters.sites import SiteTable

from ..engine.model.attention import PagedAttention, index_by_call
from ..engine.model.errors import UnservableModel
from ..engine.model.experts import ExpertsBypass
from ..engine.model.loading import forward_logits
from ..engine.model.sites import SiteTracer
from ..engine.model.state.tracing import trace_states
from ..engine.model.text_part import implementation_of_text
from ..engine.private.own_state_private import keep_states_in_a_cache
from .errors import MergeRefused
from .skeleton import skeleton

_TOKENS = 23  # as many as no model has heads


def trace_sites(config: PreTrainedConfig, trust_remote_code: bool = False) -> SiteTable:
    """Return the sites of a model with this configuration. Raises MergeRefused if it cannot be run."""
    model = skeleton(config, trust_remote_code, text_alone=True)
    _fill_with_zeros(model)
    ids = torch.zeros(_tokens(config), dtype=torch.int64)
    try:
        attention, _ = PagedAttention(), _NoExperts(model)
        with _NoProducts():
            keep_states_in_a_cache(model)
            states = trace_states(model, ids)
        model.set_attn_implementation(implementation_of_text(model, attention.name))
        index_by_call(model)
        with torch.inference_mode(), _NoProducts(), SiteTracer(model, len(ids), states) as tracer:
            forward_logits(model, ids)
            rows = torch.arange(1, len(ids), 3)  # others, the other way round
            tracer.keep(rows)
            attention.forget()  # what this pass notes once more
            forward_logits(model, ids, rows)
    except (UnservableModel, RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise MergeRefused(f"a {type(model).__name__} cannot be traced without its weights: {error}") from error
    return tracer.result().table


def _tokens(config: PreTrainedConfig) -> int:
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions")]
    return max(2, min([_TOKENS, *(int(limit) for limit in limits if limit)]))


def _fill_with_zeros(model: PreTrainedModel) -> None:
    """Put one zero, seen as a whole weight, in place of each parameter; tied ones stay one."""
    zeros: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in zeros:
                zero = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                zeros[id(parameter)] = nn.Parameter(zero, requires_grad=False)
            setattr(module, name, zeros[id(parameter)])


class _NoProducts(TorchFunctionMode):
    """Inside, a product with a weight of zeros is zeros at once."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and args[1].dim() == 2:
            return args[0].new_zeros(*args[0].shape[:-1], args[1].shape[0])
        return func(*args, **(kwargs or {}))


class _NoExperts(ExpertsBypass):
    """Experts of zeros: nothing is routed or multiplied."""

    def _run(self, module: nn.Module, hidden_states: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(hidden_states)
