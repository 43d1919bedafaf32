"""One prompt, several answers side by side while they come: one thread and one column for each."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from threading import Event

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from .client import Server
from .conversation import Conversation
from .errors import CommandError, one_line

FRAME_SECONDS = 0.1


class Column:
    """An answer as far as it has come. error: why there is no more."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.answer = ""
        self.error = ""

    def fill(self, server: Server, prompt: str, stopping: Event) -> None:
        """Take the answer in, until it is whole or `stopping` is set."""
        try:
            with closing(self.conversation.ask(server, prompt)) as pieces:
                for piece in pieces:
                    if stopping.is_set():
                        return
                    self.answer += piece.text
        except CommandError as error:
            self.error = one_line(str(error))

    def panel(self, width: int) -> Panel:
        text = Text(self.answer)
        if self.error:
            text.append(f"\n{self.error}" if self.answer else self.error, style="red")
        return Panel(text, title=Text(self.conversation.title), width=width)


def compare(server: Server, conversations: Sequence[Conversation], prompt: str) -> None:
    """Show the answers of all conversations to a prompt. ^C ends them all."""
    console, stopping = Console(), Event()
    columns = [Column(conversation) for conversation in conversations]
    # Live draws from this thread alone, so that no frame is torn by what another one writes.
    with ThreadPoolExecutor(len(columns)) as pool, Live(console=console, auto_refresh=False) as live:
        running = [pool.submit(column.fill, server, prompt, stopping) for column in columns]
        try:
            while wait(running, timeout=FRAME_SECONDS).not_done:
                live.update(_frame(columns, console.width), refresh=True)
        except KeyboardInterrupt:
            stopping.set()
        finally:
            wait(running)
            live.update(_frame(columns, console.width), refresh=True)


def _frame(columns: Sequence[Column], width: int) -> Columns:
    each = max(20, width // len(columns) - 1)
    return Columns([column.panel(each) for column in columns], padding=(0, 1, 0, 0))
