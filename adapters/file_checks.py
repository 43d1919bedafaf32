"""Checks of a complete upload that need neither the model nor torch. Knows what the files say, not where they go."""

from collections.abc import Sequence
from pathlib import Path

from .errors import InvalidAdapter, prefix_errors
from .files import WEIGHTS, experts_of
from .peft.config import read_config
from .safetensors_header import read_header


def check_files(folder: Path, experts: Sequence[str]) -> None:
    """Check the files of an adapter and of its experts, by name. Raises AdapterError."""
    for part in ("", *experts):
        with prefix_errors(part):
            read_header(folder / part / WEIGHTS)
            read_config(folder / part)
    named = experts_of(folder)
    for expert in sorted({*named, *experts}):
        if expert not in experts or expert not in named:
            what = "is not there" if expert in named else "is none of arrow_config's"
            raise InvalidAdapter(f"the expert {expert} {what}; send the files of all that it names", param="files")
