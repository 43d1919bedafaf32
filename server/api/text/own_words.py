"""What an adapter's files say of its words: tokens beyond the base's, ends, names for templates, a template.

Only tokens that were *added* to the base's tokenizer are taken, and they go into the base's own. A file of an upload so
brings no regular expression and no other rule by which texts of this server would be split. A tokenizer that is another
one is left aside, and the reason is logged.

    tokenizer.json           tokens                 generation_config.json   ends
    tokenizer_config.json    ends, names, template  chat_template.jinja      template
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ...added_tokens import AddedToken

logger = logging.getLogger(__name__)

MAX_TOKENIZER_BYTES = 128 << 20
MAX_TEXT_BYTES = 1 << 20  # of each of the other files
MAX_ADDED = 4096
MAX_CHARACTERS = 512  # of an added token
MAX_ENDS = 64
MAX_VERDICTS = 256

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class OwnWords(NamedTuple):
    """What an adapter has beside the base's words; nothing where nothing differs.

    added: in the order of their ids. special: names, as templates know them, with their tokens. template: Jinja source.
    ends: token ids.
    """

    added: tuple[AddedToken, ...] = ()
    special: tuple[tuple[str, str], ...] = ()
    template: str | None = None
    ends: tuple[int, ...] = ()

    @property
    def spoken(self) -> "OwnWords":
        """All but the ends: adapters that agree in it share a tokenizer."""
        return self._replace(ends=())


NOTHING = OwnWords()


class BaseWords(NamedTuple):
    """The base's words, as far as an adapter's are compared with them.

    size: of its output. vocabulary: returns token to id; called on a thread. template, special: as in `ModelInfo`.
    """

    size: int
    vocabulary: Callable[[], Mapping[str, int]]
    template: str | None
    special: Mapping[str, str]


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]]


class _TokenizerFile(msgspec.Struct):
    model: _Model
    added_tokens: list[AddedToken] = []


class WordsReader:
    """Reads adapters' words, on any thread. templates: whether to take their templates."""

    def __init__(self, base: BaseWords, templates: bool) -> None:
        self._base = base
        self._templates = templates
        self._verdicts: dict[tuple[bytes, int], tuple[AddedToken, ...] | str] = {}  # trainers save one file many times

    def read(self, folder: Path, size: int) -> OwnWords:
        """Return the words of the adapter in a folder. size: of its vocabulary. Raises OSError."""
        size = max(size, self._base.size)
        added = self._added(folder, size)
        config = _read_json(folder / "tokenizer_config.json")
        named = {name: text for name in SPECIAL if (text := _token_text(config.get(name))) is not None}
        template = self._template(folder, config) if self._templates else None
        seen = template or self._base.template or ""
        differing = {name: text for name, text in named.items() if self._base.special.get(name) != text}
        special = tuple((name, text) for name, text in differing.items() if name in seen)
        end = named.get("eos_token") if "eos_token" in differing else None
        return OwnWords(added, special, template, self._ends(folder, end, added, size))

    def _added(self, folder: Path, size: int) -> tuple[AddedToken, ...]:
        content = _read(folder / "tokenizer.json", MAX_TOKENIZER_BYTES)
        if content is None:
            return ()
        key = hashlib.sha256(content).digest(), size
        if key not in self._verdicts:
            if len(self._verdicts) >= MAX_VERDICTS:
                self._verdicts.clear()
            self._verdicts[key] = _judge(content, self._base.vocabulary(), size)
        verdict = self._verdicts[key]
        if isinstance(verdict, str):
            logger.warning("the tokenizer of adapter %s is left aside: %s", folder.name, verdict)
            return ()
        return verdict

    def _template(self, folder: Path, config: Mapping[str, Any]) -> str | None:
        content = _read(folder / "chat_template.jinja", MAX_TEXT_BYTES)
        source = _in_config(config) if content is None else content.decode(errors="replace")
        return None if source == self._base.template else source

    def _ends(self, folder: Path, name: str | None, added: tuple[AddedToken, ...], size: int) -> tuple[int, ...]:
        given = _read_json(folder / "generation_config.json").get("eos_token_id")
        found = given if isinstance(given, list) else [given]
        ends = {end for end in found[:MAX_ENDS] if type(end) is int and 0 <= end < size}
        if name is not None:
            own = {token.content: token.id for token in added}
            end = own[name] if name in own else self._base.vocabulary().get(name)
            if end is None:
                logger.warning("adapter %s has an eos_token %r that is no token", folder.name, name[:80])
            else:
                ends.add(end)
        return tuple(sorted(ends))


def _judge(content: bytes, base: Mapping[str, int], size: int) -> tuple[AddedToken, ...] | str:
    """Return the tokens that a tokenizer.json adds to the base's, or why it is another tokenizer."""
    try:
        file = msgspec.json.decode(content, type=_TokenizerFile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return f"it is no tokenizer.json that can be read: {str(error)[:200]}"
    words = file.model.vocab
    vocabulary = words if isinstance(words, dict) else {word: i for i, (word, _) in enumerate(words)}
    added = {token.content: token for token in file.added_tokens}
    mine = {**vocabulary, **{text: token.id for text, token in added.items()}}
    other = next((text for text, token_id in base.items() if mine.get(text, token_id) != token_id), None)
    if other is not None:
        return f"its token {mine[other]} is {other[:80]!r}, which is {base[other]} in the base's"
    strange = next((text for text in vocabulary if text not in base and text not in added), None)
    if strange is not None:
        return f"{strange[:80]!r} is a word of its own and no added token"
    own = sorted((token for text, token in added.items() if text not in base), key=lambda token: token.id)
    return _fault_of(own, set(base.values()), size) or tuple(own)


def _fault_of(own: list[AddedToken], taken: set[int], size: int) -> str | None:
    if len(own) > MAX_ADDED:
        return f"it adds {len(own)} tokens, and at most {MAX_ADDED} are taken"
    for token in own:
        if not 0 < len(token.content) <= MAX_CHARACTERS:
            return f"token {token.id} is of {len(token.content)} characters, and 1 to {MAX_CHARACTERS} are taken"
        if token.id in taken:
            return f"its token {token.id} is {token.content[:80]!r}, and another in the base's"
        if not 0 <= token.id < size:
            return f"its token {token.id} is not in the vocabulary of {size} that the adapter has"
    return None


def _in_config(config: Mapping[str, Any]) -> str | None:
    """Return the template in a tokenizer_config.json: a text, or the default of a list."""
    given = config.get("chat_template")
    entries = given if isinstance(given, list) else [{"name": "default", "template": given}]
    named = [entry.get("template") for entry in entries if isinstance(entry, dict) and entry.get("name") == "default"]
    return named[0] if named and isinstance(named[0], str) else None


def _token_text(given: Any) -> str | None:
    text = given.get("content") if isinstance(given, dict) else given
    return text if isinstance(text, str) and 0 < len(text) <= MAX_CHARACTERS else None


def _read_json(path: Path) -> Mapping[str, Any]:
    content = _read(path, MAX_TEXT_BYTES)
    if content is None:
        return {}
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        logger.warning("%s of adapter %s is left aside: %s", path.name, path.parent.name, str(error)[:200])
        return {}


def _read(path: Path, most: int) -> bytes | None:
    """Return what a file holds; None where there is none, or too much in it. Raises OSError."""
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        return None
    if len(content) > most:
        logger.warning("%s of adapter %s is left aside: it is over %d bytes", path.name, path.parent.name, most)
        return None
    return content
