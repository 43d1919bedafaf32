"""What transformers itself gives when it generates: a prompt in one pass, then token by token with its own cache.

Some models see otherwise with a cache than without one. What they answer is what they generate.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from .errors import reason_of

logger = logging.getLogger(__name__)

Plain = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From token ids (tokens,) and rows (kept,) to their logits, (kept, vocabulary) float32, without a cache."""


def generated_logits(
    model: PreTrainedModel, plain: Plain, ids: torch.Tensor, rows: torch.Tensor, prompt: int
) -> torch.Tensor:
    """Return the logits of some rows, (kept, vocabulary) float32: those from `prompt` on with the model's own cache.

    ids: (tokens,). rows: (kept,), growing. Without a cache for models that have none which can be used like this.
    """
    try:
        kept = rows[rows < prompt]
        out = _pass(model, ids, 0, prompt, None, logits_to_keep=kept)
        parts = [out.logits[0] if len(out.logits[0]) == len(kept) else out.logits[0][kept]]
        for place in range(prompt, len(ids)):
            out = _pass(model, ids, place, place + 1, out.past_key_values)
            parts.append(out.logits[0][rows[rows == place] - place])
    except Exception as error:  # of whatever its cache does
        logger.debug("transformers' own cache is not compared: %s", reason_of(error))
        return plain(ids, rows)
    return torch.cat(parts).float()


def _pass(model: PreTrainedModel, ids: torch.Tensor, start: int, end: int, cache: Any, **kept: torch.Tensor) -> Any:
    positions = torch.arange(start, end, device=ids.device)[None]
    mask = torch.ones(1, end, dtype=torch.int64, device=ids.device)
    return model(
        input_ids=ids[None, start:end],
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        **kept,
    )


def first_generated(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of the token that the model's own `generate` puts behind a prompt: (1, vocabulary) float32.

    ids: (tokens,). Raises whatever the class raises.
    """
    settings: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    config = GenerationConfig(max_new_tokens=1, pad_token_id=0, use_cache=False, **settings)
    generate: Any = model.generate
    out = generate(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], generation_config=config)
    logits: torch.Tensor = out.logits[0]
    return logits.float()
