"""Facts of a model's tokenizer, for processes that have neither transformers' tokenizer nor the model's folder."""

import json
import logging

from transformers import PreTrainedModel

from ...model_files import model_files
from ..private.transformers_private import cached_path
from .errors import reason_of

logger = logging.getLogger(__name__)


def tokenizer_facts(model: str, trust_remote_code: bool) -> tuple[str | None, str | None, dict[str, str], int | None]:
    """Return the text of tokenizer.json as transformers resolves it, chat template, special tokens, end of sequence id.

    All are None or empty for a model without a fast tokenizer: token ids alone can be sent to it.
    """
    from transformers import AutoTokenizer

    files = model_files(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.place, **files.told, trust_remote_code=trust_remote_code)
        backend = tokenizer.backend_tokenizer
    except Exception as error:  # of whatever a tokenizer's class does without its files
        logger.warning("no usable tokenizer in %s (%s): only token ids can be sent", model, reason_of(error))
        return None, None, {}, None
    backend.no_truncation()
    backend.no_padding()
    special = {name: str(text) for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
    template = tokenizer.chat_template or _template_of_processor(files.place)
    return backend.to_str(), template if isinstance(template, str) else None, special, tokenizer.eos_token_id


def _template_of_processor(model: str) -> str | None:
    """Return the template of a multimodal model's processor, where older versions of transformers kept it alone."""
    try:
        path = cached_path(model, "chat_template.json")
        if path is None:
            return None
        with open(path, encoding="utf-8") as file:
            template = json.load(file).get("chat_template")
    except (OSError, ValueError, AttributeError) as error:
        logger.debug("no template of a processor in %s: %s", model, error)
        return None
    return template if isinstance(template, str) else None


def eos_token_ids(model: PreTrainedModel, tokenizer_eos: int | None) -> frozenset[int]:
    """Return the ids that end a sequence: the generation configuration's, else the model's, else the tokenizer's."""
    for source in (model.generation_config, model.config.get_text_config()):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            return frozenset(ids if isinstance(ids, list) else [ids])
    return frozenset() if tokenizer_eos is None else frozenset([tokenizer_eos])
