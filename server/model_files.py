"""Where a base's files are: a folder, a hub's repository, or one GGUF file in either. Reads no file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

GGUF = ".gguf"
_BESIDE = re.compile(r"mmproj|imatrix", re.IGNORECASE)  # vision towers, and what a file was quantised by


class ModelFiles(NamedTuple):
    """A base as transformers is told of it.

    place: a folder or a hub's id. gguf: the name of the file in it that holds all; None for Hugging Face's format.
    """

    place: str
    gguf: str | None = None

    @property
    def told(self) -> Mapping[str, str]:
        """Return what `from_pretrained` is told beside the place."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}


def model_files(model: str) -> ModelFiles:
    """Return where a base is. model: a folder, a GGUF file, a hub's id, or one with the name of a file behind it."""
    if model.lower().endswith(GGUF) and not Path(model).is_dir():
        place, _, file = model.rpartition("/")
        return ModelFiles(place or ("/" if model.startswith("/") else "."), file)
    folder = Path(model)
    if folder.is_dir() and not (folder / "config.json").is_file() and len(found := gguf_files(folder)) == 1:
        return ModelFiles(model, found[0])
    return ModelFiles(model)


def gguf_files(folder: Path) -> list[str]:
    """Return the names of a folder's GGUF files that hold a model, sorted."""
    return sorted(
        path.name for path in folder.iterdir() if path.suffix.lower() == GGUF and not _BESIDE.match(path.name)
    )


def model_id(model: str) -> str:
    """Return the name of a base unless another is chosen: its folder's, its file's without the ending, or its hub's."""
    if Path(model).is_dir():
        return Path(model).resolve().name
    return model if (file := model_files(model).gguf) is None else file[: -len(GGUF)]
