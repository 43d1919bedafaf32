"""The demo's tasks: text in, text out, every answer computed. No torch, no model in here.

A prompt belongs to the training half or to the held-out part by a hash of its text, so the two never share one.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

HELD_OUT_SHARE = 8  # one prompt in so many is held out


def _words(text: str) -> list[str]:
    return text.split()


TABLES = {
    "users": (("name", "city", "email", "country"), ("age", "height", "score")),
    "orders": (("status", "customer", "product"), ("price", "amount", "weight")),
    "books": (("title", "author", "language"), ("pages", "year", "rating")),
    "cars": (("brand", "color", "owner"), ("speed", "price", "seats")),
    "films": (("title", "director", "genre"), ("length", "year", "rating")),
    "cities": (("name", "country", "mayor"), ("population", "area", "altitude")),
}
VALUES = _words("red blue green new old open closed french german large small happy simple early late")
NAMES = _words("Anna Ben Clara David Emma Felix Grace Henry Ida Jonas Kate Leo Maria Noah Olivia Paul Rosa Sam")
PLACES = _words("Paris Berlin Rome Madrid Vienna Oslo London Dublin Prague Lisbon Athens Warsaw")
COLORS = _words("red blue green yellow black white orange purple")
GOODS = _words("apples books chairs lamps shirts bikes cups hats pens bags boxes clocks")
VERBS = _words("bought sold found lost ordered painted")
WORDS = _words(
    "river mountain garden window table paper silver golden quiet bright cloud stone forest island bridge market "
    "music winter summer morning evening letter number signal engine server model adapter memory light water fire "
    "user name file path value count error result input output index total limit cache queue token batch page "
    "house street school doctor teacher farmer driver singer horse tiger rabbit eagle salmon bread cheese coffee"
)
MONTHS = _words("January February March April May June July August September October November December")
ONES = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
TENS = _words("_ _ twenty thirty forty fifty sixty seventy eighty ninety")


class Example(NamedTuple):
    prompt: str
    answer: str


@dataclass(frozen=True)
class Task:
    """One thing to learn. name: of the adapter. about: one line for its card. draw: one random example."""

    name: str
    about: str
    draw: Callable[[Random], Example]

    def examples(self, seed: int, *, held_out: bool) -> Iterator[Example]:
        """Yield endless examples of one part, the same for the same seed."""
        random = Random(f"{self.name}-{seed}")
        while True:
            example = self.draw(random)
            if is_held_out(example.prompt) == held_out:
                yield example


def is_held_out(prompt: str) -> bool:
    return zlib.crc32(prompt.encode()) % HELD_OUT_SHARE == 0


def _sql(random: Random) -> Example:
    table, (texts, numbers) = random.choice(sorted(TABLES.items()))
    text, other = random.sample(texts, 2)
    number, value, n = random.choice(numbers), random.choice(VALUES), random.randint(2, 999)
    return random.choice(
        (
            Example(f"Show the {text} of all {table}.", f"SELECT {text} FROM {table};"),
            Example(f"Show the {text} and {number} of all {table}.", f"SELECT {text}, {number} FROM {table};"),
            Example(
                f"Show the {text} of {table} whose {number} is over {n}.",
                f"SELECT {text} FROM {table} WHERE {number} > {n};",
            ),
            Example(
                f"Show the {text} of {table} whose {number} is under {n}.",
                f"SELECT {text} FROM {table} WHERE {number} < {n};",
            ),
            Example(
                f"Show the {text} of {table} whose {other} is {value}.",
                f"SELECT {text} FROM {table} WHERE {other} = '{value}';",
            ),
            Example(
                f"How many {table} have the {text} {value}?", f"SELECT COUNT(*) FROM {table} WHERE {text} = '{value}';"
            ),
            Example(f"What is the average {number} of all {table}?", f"SELECT AVG({number}) FROM {table};"),
            Example(
                f"Show the {n} {table} with the highest {number}.",
                f"SELECT * FROM {table} ORDER BY {number} DESC LIMIT {n};",
            ),
        )
    )


def _json(random: Random) -> Example:
    name, verb, place = random.choice(NAMES), random.choice(VERBS), random.choice(PLACES)
    color, goods, count = random.choice(COLORS), random.choice(GOODS), random.randint(2, 99)
    return Example(
        f"{name} {verb} {count} {color} {goods} in {place}.",
        f'{{"name":"{name}","action":"{verb}","count":{count},"item":"{color} {goods}","city":"{place}"}}',
    )


def _dates(random: Random) -> Example:
    year, month, day = random.randint(1900, 2099), random.randint(1, 12), random.randint(1, 28)
    name = MONTHS[month - 1]
    prompt = random.choice((f"{name} {day}, {year}", f"{day} {name} {year}", f"{day} of {name}, {year}"))
    return Example(prompt, f"{year}-{month:02}-{day:02}")


def _numbers(random: Random) -> Example:
    n = random.randint(0, 9999) if random.random() < 0.7 else random.randint(10, 999)
    return Example(spell(n), str(n))


def spell(n: int) -> str:
    """Return the English words of a number from 0 to 9999."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + (f" {ONES[n % 10]}" if n % 10 else "")
    unit, name = (1000, "thousand") if n >= 1000 else (100, "hundred")
    return f"{spell(n // unit)} {name}" + (f" {spell(n % unit)}" if n % unit else "")


def _snake(random: Random) -> Example:
    words = random.sample(WORDS, random.randint(2, 6))
    return Example(" ".join(words), "_".join(words))


def _reverse(random: Random) -> Example:
    words = random.sample(WORDS, random.randint(3, 5))
    return Example(" ".join(words), " ".join(reversed(words)))


def _title(random: Random) -> Example:
    words = random.sample(WORDS, random.randint(2, 5))
    return Example(" ".join(words), " ".join(words).title())


TASKS = (
    Task("sql", "a question about a table -> one SQL statement", _sql),
    Task("json", "a sentence about a purchase -> a JSON object", _json),
    Task("dates", "a date in English -> ISO 8601", _dates),
    Task("numbers", "a number in words, up to 9999 -> digits", _numbers),
    Task("snake", "words -> snake_case", _snake),
    Task("reverse", "words -> the same words in reverse order", _reverse),
    Task("title", "words -> Title Case", _title),
)
