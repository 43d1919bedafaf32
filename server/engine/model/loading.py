"""Load the base with transformers, and refuse a model that paged attention would serve wrongly.

The structure is checked first, with a reason a person can act on; then one traced pass must give the logits that
transformers' own eager attention gives, whatever the architecture.
"""

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from peftserve.adapters.peft.listing import listed
from peftserve.adapters.peft.plain import compute_dtype, has_plain_parameters, is_plain
from peftserve.adapters.peft.twin import carries_extras, twin
from peftserve.adapters.sites import SiteKind

from ...config import EngineConfig
from ...model_files import model_files
from ..private.own_state_private import keep_states_in_a_cache
from ..private.torch_private import guard_or_false
from .attention import PagedAttention, index_by_call
from .checkpoint import read_config, read_model
from .counted_positions import give_positions
from .errors import UnservableModel, reason_of
from .experts import ExpertsBypass
from .generation import first_generated, generated_logits
from .hidden_states import HiddenStates, HiddenStatesTracer
from .idle_modules import IdleTracer, without_idle
from .inner_linears import redirect
from .older_attention import attend_in_older_classes
from .placement import choose_device, choose_dtype
from .quantisation import how_to_load, keep_as_loaded, method_of
from .rehearsal import Rehearsal, longest, rehearsals
from .rounding import quantised_linears, rounds_inputs
from .row_positions import pass_row_positions
from .separate_rows import StepSpans, separate_mixing
from .sites import SiteTracer, TracedSites
from .state.tracing import TracedStates, trace_states
from .text_part import implementation_of_text
from .trace import Trace

logger = logging.getLogger(__name__)

TRACE_TOKENS = 23  # as many as no model has heads, by which the axis of the tokens is told
_TOLERANCE_OF_TWINS = 1e-3  # of any logit, in standard deviations of all: the same kernels over the same weights
_INDEXED = {"indexed_attention", "compressed_sparse_attention", "heavily_compressed_attention", "minimax_m3_sparse"}


@dataclass(frozen=True)
class LoadedModel:
    """A base that can be served, with all that was found out about it.

    max_model_len: tokens that the positions allow. sites: where adapters attach.

    rehearsals: sequences for the check at start, with transformers' own logits.
    twin: the model once more, with transformers' own attention over the same weights, for the compilers of adapters.
    twin_runs: whether it computes what the model does. Where weights are quantised, it need not.
    modules: of the model, by name; of a module that makes a linear product by itself, that linear.
    hidden: where its hidden states can be read. states: what it keeps of a sequence beside keys and values.
    spans: the step's rows by sequence, for linears that are run so; None where no linear is.
    """

    model: PreTrainedModel
    twin: PreTrainedModel
    twin_runs: bool
    attention: PagedAttention
    experts: ExpertsBypass
    sites: TracedSites
    max_model_len: int
    trace: Trace
    rehearsals: tuple[Rehearsal, ...]
    modules: dict[str, nn.Module]
    hidden: HiddenStates
    states: TracedStates
    spans: StepSpans | None = None

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return compute_dtype(self.model)


def load_model(config: EngineConfig) -> LoadedModel:
    """Load the base and find its sites.

    Raises UnservableModel with the reason if it cannot be served, whatever that is; OutOfMemoryError.
    """
    try:
        return _load(config)
    except (UnservableModel, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of whatever its code does with a prompt
        raise UnservableModel(f"a pass over a prompt fails: {reason_of(error)}") from error


def _load(config: EngineConfig) -> LoadedModel:
    hf_config = read_config(config.model, config.trust_remote_code)
    check_structure(hf_config)
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, hf_config, device)
    quantisation = how_to_load(
        config.quantization, hf_config, dtype, device, is_gguf=model_files(config.model).gguf is not None
    )
    divided = config.tensor_parallel_size > 1
    if divided and (quantisation or method_of(hf_config)):
        raise UnservableModel("its weights are quantised, which --tensor-parallel-size does not divide")
    model = read_model(config.model, dtype, config.trust_remote_code, quantisation)
    # What is divided stays on the host as a whole, and each rank takes its part to its device.
    model.to("cpu" if divided else device)  # type: ignore[arg-type]  # transformers' decorator hides that this is a method
    model.eval().requires_grad_(False)
    keep_as_loaded(model)
    limit = _max_model_len(hf_config.get_text_config(), config.max_model_len)
    trace = _trace(model, max(2, min(TRACE_TOKENS, limit)))
    copied, runs = _copied(model, trace)
    keep_states_in_a_cache(model)
    states = trace_states(model, trace.token_ids)
    with IdleTracer(model) as tracer:
        rehearsed = _rehearsals(model, trace, states, limit)
    experts = ExpertsBypass(model)
    with torch.inference_mode():
        attention, sites, hidden = _attach(model, trace, states, limit)
    sites = without_idle(sites, tracer.idle(), tracer.read())
    inner = [name for name, site in sites.table.sites.items() if site.kind is SiteKind.INNER]
    modules = dict(model.named_modules())
    modules |= {name: redirect(modules[name]) for name in inner}
    spans = separate_mixing(model, trace.dtype) if trace.rounded else None
    return LoadedModel(
        model, copied, runs, attention, experts, sites, limit, trace, rehearsed, modules, hidden, states, spans
    )


def check_structure(config: PreTrainedConfig) -> None:
    text = config.get_text_config()
    if config.is_encoder_decoder:
        raise UnservableModel("it is an encoder-decoder; only decoder-only language models are served")
    types = set(getattr(text, "layer_types", None) or ())
    if indexed := types & _INDEXED:
        raise UnservableModel(
            f"its layers of type {', '.join(sorted(indexed))} choose the keys that they see by an index of their own, "
            "which is kept beside the KV cache; that is not supported"
        )
    if not getattr(text, "is_causal", True) or getattr(text, "use_bidirectional_attention", False) in (True, "all"):
        raise UnservableModel("its attention is bidirectional")


def _max_model_len(config: PreTrainedConfig, asked: int | None) -> int:
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    limits.append(_longrope_limit(config))
    limit = min((int(n) for n in limits if n), default=asked or 2048)
    if asked is not None and asked > limit:
        raise UnservableModel(f"--max-model-len {asked} is more than the {limit} positions that it was made for")
    return asked or limit


def _longrope_limit(config: PreTrainedConfig) -> int | None:
    """Return the original length of a LongRoPE model, else None.

    Beyond that length all frequencies change, and a batch has only one set of them.
    """
    parameters: Any = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if parameters.get("rope_type", parameters.get("type")) != "longrope":
        return None
    original: int | None = parameters.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", None
    )
    return original


@torch.no_grad()
def _trace(model: PreTrainedModel, num_tokens: int) -> Trace:
    """Run a prompt with transformers' own attention. Raises UnservableModel if logits are NaN or infinite.

    Some packages multiply quantised weights out in the first pass; they are plain after this one.
    """
    ids = torch.arange(3, 3 + 7 * num_tokens, 7, device=model.device) % vocabulary_size(model)
    trace = Trace(ids, forward_logits(model, ids), compute_dtype(model))
    model.requires_grad_(False)
    trace = replace(trace, rounded=any(rounds_inputs(m, trace.dtype) for _, m in quantised_linears(model)))
    if not trace.logits.isfinite().all():
        broken = [name for name, p in model.named_parameters() if is_plain(p) and not p.isfinite().all()]
        where = f": {listed(broken)} hold such numbers" if broken else f" in {str(trace.dtype).removeprefix('torch.')}"
        raise UnservableModel(f"its logits are NaN or infinite{where}")
    _check_positions(model, trace)
    return trace


def _check_positions(model: PreTrainedModel, trace: Trace) -> None:
    """Raise UnservableModel if the model counts positions otherwise than from 0 on when it generates (Kosmos-2.5)."""
    try:
        logits = first_generated(model, trace.token_ids)
    except Exception as error:  # of whatever a class wants to be given
        logger.debug("%s does not generate by itself: %s", type(model).__name__, error)
        return
    trace.of(torch.tensor([-1], device=logits.device)).check(logits, "positions from 0 on")


@torch.no_grad()
def _rehearsals(model: PreTrainedModel, trace: Trace, states: TracedStates, limit: int) -> tuple[Rehearsal, ...]:
    length = longest(model.config.get_text_config(), model.device, limit)
    drawn = torch.randint(vocabulary_size(model), (length,), generator=torch.Generator().manual_seed(0))
    forward = partial(generated_logits, model, partial(forward_logits, model))
    return rehearsals(trace, drawn.to(model.device), forward, generated=bool(states.mixers))


def _copied(model: PreTrainedModel, trace: Trace) -> tuple[PreTrainedModel, bool]:
    """Return the model's twin, and whether it gives the same logits.

    It is known to without extras and quantised weights. Raises UnservableModel if modules cannot be copied.
    """
    try:
        copied = twin(model)
    except Exception as error:  # of whatever the modules are
        raise UnservableModel(f"its modules cannot be copied: {error}") from error
    if not carries_extras(model) and all(map(has_plain_parameters, model.modules())):
        return copied, True
    try:
        with torch.no_grad():
            differences = forward_logits(copied, trace.token_ids) - trace.logits
        runs = differences.abs().max().item() <= _TOLERANCE_OF_TWINS * trace.logits.std().item()
    except Exception as error:
        logger.warning("a copy of this quantised model does not run: %s", error)
        runs = False
    if not runs:
        logger.warning("adapters of virtual tokens are not served on this base, which cannot be run beside the steps")
    return copied, runs


def _attach(
    model: PreTrainedModel, trace: Trace, states: TracedStates, limit: int
) -> tuple[PagedAttention, TracedSites, HiddenStates]:
    """Find sites, hidden states and the shapes of keys and values, and compare our attention with transformers' own.

    limit: positions of the longest sequence.
    """
    attention = PagedAttention()
    pass_row_positions(model)
    give_positions(model)
    if not (older := attend_in_older_classes(model, attention, limit)):
        model.set_attn_implementation(implementation_of_text(model, attention.masks.name))
    index_by_call(model)
    with SiteTracer(model, len(trace.token_ids), states) as tracer:
        with HiddenStatesTracer(model, len(trace.token_ids)) as hidden:
            logits = forward_logits(model, trace.token_ids)
        rows = torch.arange(1, len(trace.token_ids), 3, device=model.device)  # others, the other way round
        tracer.keep(rows)
        attention.forget()  # what this pass notes once more
        kept = forward_logits(model, trace.token_ids, rows)
    if not older:
        model.set_attn_implementation(implementation_of_text(model, attention.name))
    attention.masks.clear()
    if not attention.layers and not states.mixers:
        raise UnservableModel(f"{type(model).__name__} does not call transformers' attention interface")
    trace.check(logits, "attention behind transformers' interface")
    trace.of(rows).check(kept, "only some of the rows wanted")
    return attention, tracer.result(), hidden.result()


def vocabulary_size(model: PreTrainedModel) -> int:
    """Return the number of rows of the embedding, which are the token ids that a prompt may use."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0]


def forward_logits(model: PreTrainedModel, ids: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Run the model without a cache. Returns (tokens, vocabulary) float32, or the logits of some rows only."""
    kept = {} if rows is None else {"logits_to_keep": rows}
    try:
        positions = torch.arange(len(ids), device=ids.device)
        output = model(input_ids=ids[None], position_ids=positions[None], use_cache=False, **kept)
    except TypeError as error:
        names = ", ".join(["input_ids", "position_ids", *kept])
        raise UnservableModel(f"its forward pass does not take {names}: {error}") from error
    logits: torch.Tensor = output.logits[0].float()
    return logits if rows is None else kept_rows(logits, rows)


def kept_rows(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the rows that were asked for. A model may ignore `logits_to_keep`, and give the logits of all rows."""
    return logits if guard_or_false(logits.shape[0] == rows.shape[0]) else logits[rows]
