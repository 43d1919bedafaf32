"""Facts of a model's tokenizer, for processes that have neither transformers' tokenizer nor the model's folder."""

import logging

from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def tokenizer_facts(model: str, trust_remote_code: bool) -> tuple[str | None, str | None, dict[str, str], int | None]:
    """Return the text of tokenizer.json as transformers resolves it, chat template, special tokens, end of sequence id.

    All are None or empty for a model without a fast tokenizer: token ids alone can be sent to it.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
        backend = tokenizer.backend_tokenizer
    except (OSError, ValueError, AttributeError, ImportError) as error:
        logger.warning("no usable tokenizer in %s (%s): only token ids can be sent", model, error)
        return None, None, {}, None
    backend.no_truncation()
    backend.no_padding()
    special = {name: str(text) for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
    template = tokenizer.chat_template
    return backend.to_str(), template if isinstance(template, str) else None, special, tokenizer.eos_token_id


def eos_token_ids(model: PreTrainedModel, tokenizer_eos: int | None) -> frozenset[int]:
    """Return the ids that end a sequence: the generation configuration's, else the model's, else the tokenizer's."""
    for source in (model.generation_config, model.config.get_text_config()):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            return frozenset(ids if isinstance(ids, list) else [ids])
    return frozenset() if tokenizer_eos is None else frozenset([tokenizer_eos])
