"""A look at MODEL before a process is started for it: what is plainly wrong is said in one line, at once.

What only transformers can tell, the engine says.
"""

import json
import re
from pathlib import Path

from ..model_files import GGUF, gguf_files, model_files
from .errors import CommandError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_PART = re.compile(rf"-\d+-of-\d+{re.escape(GGUF)}$", re.IGNORECASE)
_MAGIC, _LEAST = b"GGUF", 20  # bytes of the version and two counts, behind the magic ones
_IS_PATH = re.compile(r"[./~\\]|.*\\|.*/.*/|.*/$")


def check_model(model: str) -> None:
    """Raise CommandError for a folder that is not there or holds no model, and for what is no hub id."""
    folder = Path(model).expanduser()
    if (file := model_files(str(folder)).gguf) is not None:
        _check_gguf(model, folder / file if folder.is_dir() else folder)
    elif folder.is_dir():
        _check_folder(model, folder)
    elif folder.is_file():
        raise CommandError(f"{model!r} is a file: give the folder of a model in Hugging Face format, or a GGUF file")
    elif _IS_PATH.match(model):
        raise CommandError(f"there is no folder {model!r}: give one that holds a model's config.json, or a hub id")
    elif not _HUB_ID.fullmatch(model):
        raise CommandError(f"{model!r} is no folder, and no hub id such as owner/name")


def _check_gguf(model: str, file: Path) -> None:
    if _PART.search(file.name):
        raise CommandError(f"{file.name!r} is one of several parts: join them, as `llama-gguf-split --merge` does")
    if file.is_file():
        with file.open("rb") as content:
            if content.read(len(_MAGIC)) != _MAGIC or len(content.read(_LEAST)) < _LEAST:
                raise CommandError(f"{model!r} cannot be read as a GGUF file: get the model anew")
    elif _IS_PATH.match(model) or not _HUB_ID.fullmatch(model.rpartition("/")[0]):
        raise CommandError(f"there is no file {model!r}")


def _check_folder(model: str, folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise CommandError(f"{model!r} holds no config.json{_instead(model, folder)}")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"cannot read config.json in {model!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CommandError(f"config.json in {model!r} is no JSON ({error}): get the model anew") from None
    if not isinstance(content, dict):
        raise CommandError(f"config.json in {model!r} is no JSON object: get the model anew")


def _instead(model: str, folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return f", but an adapter: give its base as MODEL, and --adapter NAME={model}"
    if len(files := gguf_files(folder)) > 1:
        return f", but several GGUF files: name one of them, such as {str(Path(model) / files[0])!r}"
    return ": give the folder of a model in Hugging Face format"
