"""The error that ends a command: a message for the person who typed it, and an exit code."""

FAILED, USAGE, UNREACHABLE = 1, 2, 3


class CommandError(Exception):
    """A failed command. exit_code: FAILED when a server said no, USAGE for a mistake, UNREACHABLE without a server."""

    def __init__(self, message: str, exit_code: int = USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code
