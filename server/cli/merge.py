"""`peftserve merge`: write a base with adapters in its weights, as a checkpoint of its own. Needs no server."""

import argparse
import os
from pathlib import Path

from peftserve.adapters.errors import AdapterError

from ..config import EngineConfig
from ..demo import DEMO_ADAPTERS, DEMO_MODEL, DEMO_NAME
from ..sizes import show_size
from . import values
from .errors import FAILED, CommandError
from .progress import progress
from .serve import default_state_dir, model_name
from .settings.setting import ENV_PREFIX

_DTYPES = ("auto", "bfloat16", "float16", "float32")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "merge",
        help="write a base with adapters in its weights as a checkpoint",
        description="Write MODEL, or the built-in demo, with adapters in its weights, as a checkpoint in Hugging Face "
        "format: what it answers is what the mixture answers when it is served.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder or hub id of the base")
    parser.add_argument(
        "--adapter",
        metavar="NAME_OR_PATH[=WEIGHT]",
        action="append",
        required=True,
        help="a name in --state-dir (name@2: its second version), or a folder in PEFT's format; repeatable",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the new folder")
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        type=values.path,
        help=f"where names are looked up (default: {ENV_PREFIX}STATE_DIR, or that of MODEL)",
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="auto", help="of the weights written; auto, the default: those of the base"
    )
    parser.add_argument("--dequantize", action="store_true", help="write a quantised base as plain numbers")
    _size_argument(parser, "--max-shard-size", "5GB", "of one file")
    _size_argument(
        parser, "--max-dense-delta", show_size(EngineConfig.max_dense_delta), "of an adapter's full-rank deltas"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    parser.set_defaults(run=run)


def _size_argument(parser: argparse.ArgumentParser, flag: str, default: str, about: str) -> None:
    parser.add_argument(flag, metavar="SIZE", default=default, help=f"largest size {about} (default: {default})")


def run(arguments: argparse.Namespace) -> int:
    asked = [parse_asked(text) for text in arguments.adapter]
    sizes = {name: _size(arguments, name) for name in ("max_shard_size", "max_dense_delta")}
    if arguments.out.exists():
        raise CommandError(f"--out: there is something at {str(arguments.out)!r} already; name a new folder")
    from ..checkpoint.errors import MergeRefused  # late: `--help` and a mistake in a flag need no model

    try:
        return _merge(arguments, asked, **sizes)
    except MergeRefused as error:
        raise CommandError(str(error), FAILED) from None
    except AdapterError as error:
        raise CommandError(error.message, FAILED) from None
    except OSError as error:
        raise CommandError(f"{error.strerror or error}: {error.filename or arguments.out}", FAILED) from None


def parse_asked(text: str) -> tuple[str, float]:
    """Return an adapter and its weight. A path may have a `=` in it. Raises CommandError."""
    name, separator, weight = text.rpartition("=")
    if not separator or Path(text).is_dir():
        return text, 1.0
    try:
        if name:
            return name, values.finite(weight)
    except ValueError:
        pass
    raise CommandError(f"--adapter: {text!r} is not NAME_OR_PATH or NAME_OR_PATH=WEIGHT, with a number as weight")


def _size(arguments: argparse.Namespace, name: str) -> int:
    text = getattr(arguments, name)
    try:
        return values.size(text)
    except ValueError as error:
        raise CommandError(f"--{name.replace('_', '-')}: {text!r} {error}") from None


def _merge(
    arguments: argparse.Namespace, asked: list[tuple[str, float]], *, max_shard_size: int, max_dense_delta: int
) -> int:
    from ..checkpoint.lookup import Asked, find_adapters
    from ..checkpoint.merge import MergeRequest, dtype_named, merge

    model, name = arguments.model or str(DEMO_MODEL), model_name(arguments.model)
    known = DEMO_ADAPTERS if name == DEMO_NAME else {}
    chosen = find_adapters([Asked(*one) for one in asked], _state_dir(arguments, name), model, known)
    request = MergeRequest(
        model=model,
        name=name,
        chosen=chosen,
        out=arguments.out,
        dtype=dtype_named(arguments.dtype),
        dequantize=arguments.dequantize,
        max_shard_bytes=max_shard_size,
        max_dense_delta=max_dense_delta,
        trust_remote_code=arguments.trust_remote_code,
    )
    with progress("merging", is_bytes=True) as show:
        members = merge(request, show)
    mixture = " + ".join(f"{member.weight:g} {member.name}" for member in members)
    print(f"{arguments.out}: {name} + {mixture}")
    return 0


def _state_dir(arguments: argparse.Namespace, name: str) -> Path:
    if arguments.state_dir is not None:
        folder: Path = arguments.state_dir
        if not folder.is_dir():
            raise CommandError(f"--state-dir: there is no folder {str(folder)!r}")
        return folder
    variable = os.environ.get(f"{ENV_PREFIX}STATE_DIR")
    return values.path(variable) if variable else default_state_dir(name, os.environ)
