"""The error that ends a command: a message for the person who typed it, and an exit code."""

FAILED, USAGE, UNREACHABLE = 1, 2, 3
INTERRUPTED, NO_READER = 130, 141  # as a shell says it of SIGINT and SIGPIPE


class CommandError(Exception):
    """A failed command. exit_code: FAILED when a server said no, USAGE for a mistake, UNREACHABLE without a server.

    code: that of the server's error, where it has one.
    """

    def __init__(self, message: str, exit_code: int = USAGE, code: str | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.code = code


def one_line(message: str) -> str:
    """Return a message without line breaks, which those of libraries have."""
    return " ".join(message.split())
