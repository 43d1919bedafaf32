"""The files of an adapter, from wherever they can be read one by one, into a staged upload.

Knows which files belong to an adapter and in which order they are asked for; a source knows how one is read.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from peftserve.adapters.files import COMPANIONS, CONFIG, WEIGHTS, experts_of
from peftserve.adapters.settling import shards_of
from peftserve.adapters.staging import StagedUpload
from peftserve.adapters.upload_names import ADAPTERHUB_WEIGHTS, INDEX

from ..http.threads import to_the_end
from .place import SourceMissing

Read = Callable[[str], AsyncGenerator[bytes]]
"""Read the file at a path relative to the adapter's folder. Raises SourceMissing before anything is read of it."""

BLOCK = 1 << 20  # bytes gathered before a thread writes them


async def receive_folder(read: Read, staged: StagedUpload) -> None:
    """Write an adapter's files, and those of its experts: below its folder, or beside it as PEFT saves them.

    Raises SourceFailed, AdapterError.
    """
    await _receive(read, "", staged, "")
    await _receive_companions(read, staged)
    for expert in await to_the_end(experts_of, staged.path):
        try:
            await _receive(read, f"{expert}/", staged, f"{expert}/")
        except SourceMissing:
            if f"{expert}/{CONFIG}" in staged.names:
                raise
            await _receive(read, f"../{expert}/", staged, f"{expert}/")


async def _receive_companions(read: Read, staged: StagedUpload) -> None:
    """Get what an adapter has beside its own two files. The first stands for all: whoever saves any saves it."""
    for name in sorted(COMPANIONS, key=lambda name: name != "tokenizer_config.json"):
        try:
            await _save(read(name), staged, name)
        except SourceMissing:
            if name == "tokenizer_config.json":
                return


async def _receive(read: Read, place: str, staged: StagedUpload, prefix: str) -> None:
    await _save(read(place + CONFIG), staged, prefix + CONFIG)
    try:
        await _save(read(place + WEIGHTS), staged, prefix + WEIGHTS)
    except SourceMissing as error:
        if not await _receive_other_weights(read, place, staged, prefix):
            why = "adapters are read from safetensors only, which save_pretrained writes by default"
            raise SourceMissing(f"{error.body.message.rstrip('.')}; {why}.") from None


async def _receive_other_weights(read: Read, place: str, staged: StagedUpload, prefix: str) -> bool:
    """Get weights that are saved by another name, or in several files. Returns whether there are any."""
    for name in (ADAPTERHUB_WEIGHTS, INDEX):
        try:
            await _save(read(place + name), staged, prefix + (WEIGHTS if name == ADAPTERHUB_WEIGHTS else name))
        except SourceMissing:
            continue
        if name == INDEX:
            for shard in await to_the_end(shards_of, staged.path / prefix / INDEX):
                await _save(read(place + shard), staged, prefix + shard)
        return True
    return False


async def _save(pieces: AsyncGenerator[bytes], staged: StagedUpload, name: str) -> None:
    """Write one file. It is begun with its first bytes, so that one that is missing leaves none."""
    async with aclosing(pieces):
        block = bytearray(await anext(pieces, b""))
        file = staged.begin(name)
        try:
            async for piece in pieces:
                block += piece
                if len(block) >= BLOCK:
                    await to_the_end(file.write, bytes(block))
                    block.clear()
            await to_the_end(file.write, bytes(block))
            await to_the_end(file.close)
        finally:
            file.abandon()
