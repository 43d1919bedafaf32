"""OpenAI's `echo`: the prompt in front of its answer, in the text and in the logprobs."""

from msgspec.structs import replace

from .generation import Prompt
from .sequence import Delta, ShownToken
from .tokenizer import Tokenizer


class Echo:
    """Makes the answer's deltas into those of prompt and answer together."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens

    def apply(self, prompt: Prompt, delta: Delta, first: bool) -> Delta:
        """first: the delta is the one that the prompt comes with."""
        text = self._text(prompt)
        moved = [replace(token, offset=token.offset + len(text)) for token in delta.shown]
        if not first:
            return replace(delta, shown=moved)
        return replace(delta, text=text + delta.text, shown=[*self._tokens(prompt, delta), *moved])

    def _text(self, prompt: Prompt) -> str:
        if prompt.text is not None:
            return prompt.text
        return self._tokenizer.decode(prompt.token_ids, self._skip_special_tokens)

    def _tokens(self, prompt: Prompt, delta: Delta) -> list[ShownToken]:
        entries = delta.prompt_logprobs or [None] * len(prompt.token_ids)
        detokenizer = self._tokenizer.detokenizer(self._skip_special_tokens)
        tokens, offset = [], 0
        for token_id, entry in zip(prompt.token_ids, entries, strict=True):
            tokens.append(ShownToken(token_id, offset, entry))
            offset += len(detokenizer.push(token_id))
        return tokens
