"""Load the base with transformers, and refuse a model that paged attention would serve wrongly.

The structure is checked first, with a reason a person can act on; then one traced pass must give the logits that
transformers' own eager attention gives, whatever the architecture.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from peftserve.adapters.peft.listing import listed
from peftserve.adapters.peft.plain import compute_dtype, has_plain_parameters, is_plain
from peftserve.adapters.peft.twin import carries_extras, twin
from peftserve.adapters.sites import SiteKind

from ...config import EngineConfig
from ..private.torch_private import guard_or_false
from .attention import PagedAttention
from .checkpoint import read_config, read_model
from .errors import UnservableModel
from .experts import ExpertsBypass
from .hidden_states import HiddenStates, HiddenStatesTracer
from .inner_linears import redirect
from .placement import choose_device, choose_dtype
from .sites import SiteTracer, TracedSites

logger = logging.getLogger(__name__)

TRACE_TOKENS = 24
# What log-probabilities may differ by, in standard deviations of the logits.
_TOLERANCE = 0.01  # in float32, of any token
_TOLERANCE_OF_16_BITS = 0.2  # root mean square of a token's, for half of the tokens: rounding can flip an expert
_TOLERANCE_OF_TWINS = 1e-3  # of any logit, in standard deviations of all: the same kernels over the same weights
_LAYER_TYPES = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Trace:
    """A prompt and the logits that transformers' own attention gives for it: what other ways of running must give.

    token_ids: (tokens,). logits: (tokens, vocabulary) float32. dtype: the model's.
    """

    token_ids: torch.Tensor
    logits: torch.Tensor
    dtype: torch.dtype

    def first(self, num_tokens: int) -> "Trace":
        """Return the trace of the first tokens alone: attention is causal, so their logits are the same."""
        return Trace(self.token_ids[:num_tokens], self.logits[:num_tokens], self.dtype)

    def of(self, rows: torch.Tensor) -> "Trace":
        """Return the trace with the logits of these rows only."""
        return replace(self, logits=self.logits[rows])

    def check(self, logits: torch.Tensor, what: str) -> None:
        """Raise UnservableModel if logits differ from these by more than the rounding of the model's type explains.

        what: what gave them, for the message.
        """
        differences = logits.float().log_softmax(-1) - self.logits.log_softmax(-1)
        scale = max(self.logits.std(-1).mean().item(), 1.0)
        if self.dtype == torch.float32:
            difference, tolerance = differences.abs().max().item(), _TOLERANCE
        else:
            difference, tolerance = differences.square().mean(-1).sqrt().median().item(), _TOLERANCE_OF_16_BITS
        if not difference <= scale * tolerance:
            raise UnservableModel(f"its logits with {what} are off by {difference:.3g}: it uses attention unknown here")


@dataclass(frozen=True)
class LoadedModel:
    """A base that can be served, with all that was found out about it.

    max_model_len: tokens that the positions allow. sites: where adapters attach.

    twin: the model once more, with transformers' own attention over the same weights, for the compilers of adapters.
    twin_runs: whether it computes what the model does. Where weights are quantised, it need not.
    modules: of the model, by name; of a module that makes a linear product by itself, that linear.
    hidden: where its hidden states can be read.
    """

    model: PreTrainedModel
    twin: PreTrainedModel
    twin_runs: bool
    attention: PagedAttention
    experts: ExpertsBypass
    sites: TracedSites
    max_model_len: int
    trace: Trace
    modules: dict[str, nn.Module]
    hidden: HiddenStates

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return compute_dtype(self.model)


def load_model(config: EngineConfig) -> LoadedModel:
    """Load the base and find its sites. Raises UnservableModel with the reason if it cannot be served."""
    hf_config = read_config(config.model, config.trust_remote_code)
    check_structure(hf_config)
    device = choose_device(config.device)
    model = read_model(config.model, choose_dtype(config.dtype, hf_config, device), config.trust_remote_code)
    model.to(device)  # type: ignore[arg-type]  # transformers' decorator hides that this is a method
    model.eval().requires_grad_(False)
    limit = _max_model_len(hf_config.get_text_config(), config.max_model_len)
    trace = _trace(model, max(2, min(TRACE_TOKENS, limit)))
    copied, runs = _copied(model, trace)
    experts = ExpertsBypass(model)
    with torch.inference_mode():
        attention, sites, hidden = _attach(model, trace)
    inner = [name for name, site in sites.table.sites.items() if site.kind is SiteKind.INNER]
    modules = dict(model.named_modules())
    modules |= {name: redirect(modules[name]) for name in inner}
    return LoadedModel(model, copied, runs, attention, experts, sites, limit, trace, modules, hidden)


def check_structure(config: PreTrainedConfig) -> None:
    text = config.get_text_config()
    if config.is_encoder_decoder:
        raise UnservableModel("it is an encoder-decoder; only decoder-only language models are served")
    if unknown := set(getattr(text, "layer_types", None) or ()) - _LAYER_TYPES:
        raise UnservableModel(f"its layers of type {', '.join(sorted(unknown))} keep state outside the paged KV cache")
    if not getattr(text, "is_causal", True) or getattr(text, "use_bidirectional_attention", False):
        raise UnservableModel("its attention is bidirectional")


def _max_model_len(config: PreTrainedConfig, asked: int | None) -> int:
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
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
    if not trace.logits.isfinite().all():
        broken = [name for name, p in model.named_parameters() if is_plain(p) and not p.isfinite().all()]
        where = f": {listed(broken)} hold such numbers" if broken else f" in {str(trace.dtype).removeprefix('torch.')}"
        raise UnservableModel(f"its logits are NaN or infinite{where}")
    return trace


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


def _attach(model: PreTrainedModel, trace: Trace) -> tuple[PagedAttention, TracedSites, HiddenStates]:
    """Find sites, hidden states and the shapes of keys and values, and compare our attention with transformers' own."""
    attention = PagedAttention()
    model.set_attn_implementation(attention.name)
    with SiteTracer(model, len(trace.token_ids)) as tracer:
        with HiddenStatesTracer(model, len(trace.token_ids)) as hidden:
            logits = forward_logits(model, trace.token_ids)
        rows = torch.arange(1, len(trace.token_ids), 2, device=model.device)
        tracer.keep(rows)
        attention.layers.clear()  # which this pass notes once more
        kept = forward_logits(model, trace.token_ids, rows)
    if not attention.layers:
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
