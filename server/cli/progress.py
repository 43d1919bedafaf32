"""Bars of progress: on standard error, on a terminal only, gone when the work is done."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

Show = Callable[[float, float | None], None]  # how much is done, of how much: None where nobody knows


@contextmanager
def progress(title: str, total: float | None = None, *, is_bytes: bool = False, quiet: bool = False) -> Iterator[Show]:
    """Show a bar while the block runs, which tells it how far it is."""
    if quiet or not sys.stderr.isatty():
        yield _hide
        return
    bar = _bar(is_bytes)
    with bar:
        task = bar.add_task(title, total=total)

        def show(done: float, total: float | None) -> None:
            bar.update(task, completed=done, total=total)

        yield show


def _hide(done: float, total: float | None) -> None:
    """Show nothing: there is no terminal."""


def watched(items: Sequence[str], title: str) -> Iterable[str]:
    """Yield the items, with a bar of how many have been taken."""
    with progress(title, len(items)) as show:
        for done, item in enumerate(items):
            show(done, len(items))
            yield item


class CountedFile:
    """A file that tells how far it has been read. httpx asks it for its length by seeking."""

    def __init__(self, file: IO[bytes], advance: Callable[[int], None]) -> None:
        self._file = file
        self._advance = advance

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        self._advance(len(chunk))
        return chunk

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


class Counter:
    """A sum that a bar follows."""

    def __init__(self, show: Show, total: float | None) -> None:
        self._show = show
        self._total = total
        self._done = 0

    def advance(self, amount: int = 1) -> None:
        self._done += amount
        self._show(self._done, self._total)


def _bar(is_bytes: bool) -> "Progress":
    from rich import progress as rich_progress  # late: most commands show none
    from rich.console import Console

    amounts: list[rich_progress.ProgressColumn] = (
        [rich_progress.DownloadColumn(binary_units=True), rich_progress.TransferSpeedColumn()]
        if is_bytes
        else [rich_progress.MofNCompleteColumn()]
    )
    return rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        *amounts,
        rich_progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
