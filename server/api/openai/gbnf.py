"""Grammars in llama.cpp's notation (GBNF, which SGLang and vLLM call EBNF), written in llguidance's notation of Lark.

https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md. Line breaks are spaces here:
alternatives may stand on lines of their own, as in other dialects.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

DEEPEST = 64  # groups in groups
ROOT = "root"

_TOKEN = re.compile(
    r"""(?P<space>(?:\s|\#[^\n]*)+) | (?P<is>::=) | (?P<name>[a-zA-Z0-9_-]+) | (?P<text>"(?:\\.|[^"\\])*")
    | (?P<set>\[(?:\\.|[^\]\\])*\]) | (?P<times>[*+?]|\{\s*\d+\s*(?:,\s*\d*\s*)?\}) | (?P<sign>[()|.])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t"}
_LARK = re.compile(r"^\s*(%llguidance\b|start\s*:(?!:=))", re.MULTILINE)


class Token(NamedTuple):
    kind: str
    text: str
    line: int


class Reference(NamedTuple):
    """A rule's name, inside of another rule."""

    name: str
    line: int


Piece = str | Reference  # Lark's own text, or what becomes the name of a rule in it


def to_lark(text: str, flat: bool = True) -> str:
    """Return a grammar in Lark's notation. text: in Lark's, which is returned as it is, or GBNF.

    flat: rules without recursion become regular expressions, which leave no doubt about where each of their parts
    ends, as a lexer of separate terminals would. Raises ValueError, with the line.
    """
    if _LARK.search(text) is not None:
        return text
    if "::=" not in text:
        raise ValueError("a grammar has a rule `start:` in Lark's notation, or `root ::=` in GBNF")
    rules = _Reader(text).rules()
    if ROOT not in rules:
        raise ValueError("there is no rule `root`, with which a grammar in GBNF begins")
    for pieces in rules.values():
        for piece in pieces:
            if isinstance(piece, Reference) and piece.name not in rules:
                raise ValueError(f"line {piece.line}: there is no rule {piece.name!r}")
    return _write(rules, _regular(rules) if flat else set())


def _write(rules: Mapping[str, list[Piece]], regular: set[str]) -> str:
    names = {name: f"{'T' if name in regular else 'r'}{place}" for place, name in enumerate(rules)}
    lines = [f"start: {names[ROOT]}"]
    for name, pieces in rules.items():
        body = " ".join(names[piece.name] if isinstance(piece, Reference) else piece for piece in pieces)
        lines.append(f"{names[name]}: {body}")
    return "\n".join(lines) + "\n"


def _regular(rules: Mapping[str, list[Piece]]) -> set[str]:
    """Return the rules that lead to no recursion."""
    needs = {name: {piece.name for piece in pieces if isinstance(piece, Reference)} for name, pieces in rules.items()}
    regular: set[str] = set()
    while more := {name for name, needed in needs.items() if name not in regular and needed <= regular}:
        regular |= more
    return regular


class _Reader:
    """Reads rules one token after another."""

    def __init__(self, text: str) -> None:
        self._tokens = [*_tokens(text), Token("end", "", text.count("\n") + 1), Token("end", "", 0)]
        self._place = 0

    def rules(self) -> dict[str, list[Piece]]:
        rules: dict[str, list[Piece]] = {}
        while self._next.kind != "end":
            if not self._begins_rule():
                raise self._unexpected('a rule, such as `name ::= "text"`')
            name = self._take().text
            self._take()
            rules[name] = [*rules[name], "|"] if name in rules else []
            rules[name] += self._alternatives(0)
        return rules

    @property
    def _next(self) -> Token:
        return self._tokens[self._place]

    def _take(self) -> Token:
        self._place += 1
        return self._tokens[self._place - 1]

    def _begins_rule(self) -> bool:
        return self._next.kind == "name" and self._tokens[self._place + 1].kind == "is"

    def _alternatives(self, depth: int) -> list[Piece]:
        if depth > DEEPEST:
            raise ValueError(f"line {self._next.line}: more than {DEEPEST} groups inside of each other")
        pieces = self._sequence(depth)
        while self._next.text == "|":
            self._take()
            pieces += ["|", *self._sequence(depth)]
        return pieces

    def _sequence(self, depth: int) -> list[Piece]:
        pieces: list[Piece] = []
        while self._next.kind != "end" and self._next.text not in ("|", ")") and not self._begins_rule():
            pieces += self._item(depth)
            if self._next.kind == "times":  # no item ends with a rule's name
                pieces.append(f"{pieces.pop()}{self._times()}")
        return pieces or ['""']

    def _times(self) -> str:
        return re.sub(r"\s", "", self._take().text)

    def _item(self, depth: int) -> list[Piece]:
        token = self._take()
        if token.text == "(":
            inner = self._alternatives(depth + 1)
            if self._take().text != ")":
                raise ValueError(f"line {token.line}: a group is not closed")
            return ["(", *inner, ")"]
        if token.kind == "name":
            # In a group of its own, so that what repeats it stands behind a parenthesis.
            return ["(", Reference(token.text, token.line), ")"]
        if token.kind == "text":
            return [json.dumps("".join(one for one, _ in _characters(token, token.text[1:-1])), ensure_ascii=False)]
        if token.kind == "set":
            return [_set(token)]
        if token.text == ".":
            return [r"/(.|\n)/"]
        self._place -= 1
        raise self._unexpected("a text, a set, a group or a rule's name")

    def _unexpected(self, right: str) -> ValueError:
        token = self._next
        found = repr(token.text[:40]) if token.kind != "end" else "the end"
        return ValueError(f"line {token.line}: there is {found}; expected is {right}")


def _tokens(text: str) -> Iterator[Token]:
    place, line = 0, 1
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError(f"line {line}: GBNF has nothing like {text[place : place + 20]!r}")
        if match.lastgroup != "space":
            yield Token(str(match.lastgroup), match[0], line)
        line += match[0].count("\n")
        place = match.end()


def _characters(token: Token, inner: str) -> Iterator[tuple[str, bool]]:
    """Yield each character, and whether it was escaped."""
    place = 0
    while place < len(inner):
        match = _ESCAPE.match(inner, place)
        yield (_unescaped(token, match), True) if match is not None else (inner[place], False)
        place = match.end() if match is not None else place + 1


def _unescaped(token: Token, match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    if code is None:
        return _CONTROLS.get(match[4], match[4])
    number = int(code, 16)
    if number > 0x10FFFF or 0xD800 <= number < 0xE000:
        raise ValueError(f"line {token.line}: {match[0]} is no character")
    return chr(number)


def _set(token: Token) -> str:
    """Return a set of characters as a regular expression, each by its number."""
    inner = token.text[1:-1]
    negated = inner.startswith("^")
    characters = [*_characters(token, inner[negated:])]
    if not characters:
        raise ValueError(f"line {token.line}: {token.text} has no characters")
    pieces, place = [], 0
    while place < len(characters):
        first = last = characters[place][0]
        if characters[place + 1 : place + 2] == [("-", False)] and place + 2 < len(characters):
            place += 2
            last = characters[place][0]
        if last < first:
            raise ValueError(f"line {token.line}: the range {first}-{last} is the wrong way round")
        pieces.append(_number(first) if first == last else f"{_number(first)}-{_number(last)}")
        place += 1
    return f"/[{'^' if negated else ''}{''.join(pieces)}]/"


def _number(character: str) -> str:
    return f"\\x{{{ord(character):x}}}"
