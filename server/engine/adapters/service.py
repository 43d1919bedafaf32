"""The engine's adapters: arena, backend, loader, tiers, inspections and releases, put together."""

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import torch

from peftserve.adapters.errors import AdapterDamaged, AdapterError, AdapterTooLarge, InvalidAdapter
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.files import content_digest
from peftserve.adapters.peft.compile import CompiledAdapter, compile_adapter
from peftserve.kernels.bypass.columns.spare import SpareColumns
from peftserve.kernels.bypass.factory import make_bypass_backend
from peftserve.kernels.device.step_memory import StepMemory
from peftserve.kernels.ops.side import SideOps

from ...config import EngineConfig
from ..memory import allocated_bytes, free_bytes, give_back_free_memory
from ..model.loading import LoadedModel
from .ahead import AheadOfUse
from .attachments import Attachments
from .copies import make_copies
from .host_tier import HostTier, digest_of
from .loader import AdapterLoader, Load
from .mirror import Ranks
from .packing import ALIGNMENT, Blob, SharedPiece, pack
from .prefixes import prefix_of_base
from .preparation import PreparedAdapter
from .ranges import RangeAllocator
from .residency import AdapterResidency
from .sizing import arena_bytes, largest_stored_bytes, linear_groups, lora_bytes
from .spill import Spill

SPILL_FACTOR = 16  # of the host's memory for adapters: what their compiled forms may take on the disk


class AdapterService:
    """All that the engine does with adapters.

    loaded: what adapters are compiled against; its weights are read and never written. most_rows: of any step.
    memory: what a step tells the device goes through. wide: weights with spare columns, by group.
    ranks: what is done where the base is divided; None where it is whole.
    """

    def __init__(
        self,
        config: EngineConfig,
        loaded: LoadedModel,
        most_rows: int,
        memory: StepMemory,
        wide: Mapping[int, torch.Tensor] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._config = config
        self._loaded = loaded
        self._folders: dict[str, Path] = {}
        self._ranks = ranks or Ranks()
        size = arena_size(config, loaded)
        self._arena = torch.empty(size // loaded.dtype.itemsize, dtype=loaded.dtype, device=loaded.device)
        allocated = allocated_bytes(loaded.device)
        backend = make_bypass_backend(
            self._arena,
            loaded.sites.groups.groups,
            max_rows=most_rows,
            max_entries=max(most_rows, config.max_running * config.max_loras) + config.max_loras,
            max_slots=config.max_loras,
            max_rank=config.max_lora_rank,
            memory=memory,
        )
        self.scratch_bytes = allocated_bytes(loaded.device) - allocated
        side, head = SideOps(loaded.sites.rows()), loaded.sites.table.head
        sites = loaded.sites.groups
        columns = SpareColumns(self._arena, sites.groups, wide) if wide else None
        self.attachments = Attachments(
            self._arena, backend, side, loaded.modules, head, sites, columns, loaded.states.norms
        )
        self._copies = make_copies(self._arena)
        self._loader = AdapterLoader(self._compile_key, self._copies)
        self._spill = _spill(config, loaded)
        host = HostTier(config.host_adapter_memory, config.max_cpu_loras, self._spill.keep)
        ranges = RangeAllocator(self._arena.numel(), ALIGNMENT)
        self.residency = AdapterResidency(
            self._loader, self.attachments, host, ranges, config.max_loras, self._ranks.mirror, self._folder_of
        )
        self.ahead = AheadOfUse(self.residency, config.max_loras, ranges.capacity, self._arena.element_size())
        self._lock = Lock()  # of what the loader's threads share
        self._pieces: WeakValueDictionary[str, SharedPiece] = WeakValueDictionary()  # the loader's threads'
        self._compiled: deque[tuple[str, Blob]] = deque()  # by the loader's threads, for `poll` to take in
        self._releases: dict[str, list[Future[None]]] = {}
        self._failures: dict[tuple[str, ...], BaseException] = {}
        self._num_damaged = 0  # counted by the loader's threads
        self._damaged: deque[str] = deque()  # found by them, since the last account

    @property
    def arena_bytes(self) -> int:
        return self._arena.nbytes

    def inspect(self, digest: str, folder: Path, tenant: str = "") -> Future[AdapterFacts]:
        """Compile on a thread of the loader's, and put the blob into the host tier. The future raises AdapterError.

        tenant: whose adapter it is; tenants take turns.
        """
        return self._loader.inspect(tenant, partial(self._inspect, digest, folder))

    def release(self, digest: str) -> Future[None]:
        """Drop an adapter from device, host and disk, pinned or not.

        The future is done when that is, once no sequence uses it.
        """
        self.ahead.forget(digest)
        release: Future[None] = Future()
        self._releases.setdefault(digest, []).append(release)
        return release

    def poll(self, is_used: Callable[[str], bool]) -> None:
        """Take in finished loads, and drop adapters that are to be released and are in no use."""
        while self._compiled:
            self.residency.keep(*self._compiled.popleft())
        failures = self.residency.poll()
        self._failures |= failures
        self.ahead.poll(failures)
        for digest in list(self._releases):
            if not is_used(digest) and self.residency.drop(digest):
                self._folders.pop(digest, None)
                self._ranks.mirror.forget(digest)
                gone = self._spill.forget(digest)
                for release in self._releases.pop(digest):
                    gone.add_done_callback(partial(_settle, release))

    def fetch(self, key: str, folder: Path) -> Future[Blob]:
        """Compile this rank's part of an adapter that another rank has inspected, or find it on the host."""
        if (blob := self.residency.host.get(key)) is not None:
            found: Future[Blob] = Future()
            found.set_result(blob)
            return found
        self._folders.setdefault(key.partition(":")[0], folder)
        return self._loader.fetch(key)

    def load_at(self, blob: Blob, start: int) -> Load[PreparedAdapter]:
        """Bring a blob to element `start` of the arena, which another rank has chosen for it."""
        return self._loader.load([(blob.data, start)], partial(self.attachments.prepare, start, blob.layout, {}))

    def take_failures(self) -> dict[tuple[str, ...], BaseException]:
        """Return the digests that could not be loaded since the last call, alone or together, and why."""
        failures, self._failures = self._failures, {}
        return failures

    def stats(self) -> dict[str, Any]:
        """Return the adapters' fields of EngineStats. Durations of loads and damaged adapters are handed out once."""
        residency = self.residency
        seconds = [residency.load_seconds.popleft() for _ in range(len(residency.load_seconds))]
        damaged = [self._damaged.popleft() for _ in range(len(self._damaged))]
        return {
            "adapter_integrity_failures": self._num_damaged + self._spill.num_damaged,
            "damaged_adapters": damaged,
            "adapter_loads": residency.num_loads,
            "adapter_evictions": residency.num_evictions,
            "adapter_load_seconds": seconds,
            "device_adapters": list(dict.fromkeys(map(digest_of, residency.digests()))),
            "pinned_adapters": sorted(residency.pinned),
            "host_adapters": residency.host.digests(),
            "device_adapter_bytes": residency.num_elements() * self._arena.element_size(),
            "host_adapter_bytes": residency.host.num_bytes,
        }

    def is_busy(self) -> bool:
        """Return whether something is under way that `poll` will take in."""
        return bool(self._compiled or self._releases) or self.residency.is_loading() or self.ahead.is_busy()

    def check_integrity(self) -> None:
        self.residency.check_integrity()

    def close(self) -> None:
        self._loader.close()
        self._spill.close()

    # On the loader's threads

    def _inspect(self, digest: str, folder: Path) -> AdapterFacts:
        try:
            compiled = self._compile(folder)
        except AdapterError:
            self._verify(digest, folder)  # what has changed since it came is no mistake of who sent it
            raise
        blob = self._pack(compiled)
        self._check_beside_pinned(digest, blob)
        if self._config.store is None:
            self._folders[digest] = folder
        self._compiled.append((digest, blob))
        return msgspec.structs.replace(compiled.facts, num_bytes=blob.num_bytes)

    def _compile_key(self, key: str) -> Blob:
        if (blob := self._spill.read(key)) is not None:
            return blob
        digest, _, task = key.partition(":")
        folder = self._folder_of(digest)
        self._verify(digest, folder)
        return self._pack(self._compile(folder, int(task or 0)))

    def _verify(self, digest: str, folder: Path) -> None:
        """Compare files on the disk with the digest of what was uploaded. Raises AdapterDamaged."""
        if self._config.store is None or content_digest(folder) == digest:
            return
        with self._lock:
            self._num_damaged += 1
        self._damaged.append(digest)
        what = "are damaged" if folder.is_dir() else "are gone"
        raise AdapterDamaged(f"its files on the server's disk {what}; upload the same files again, which mends it")

    def _compile(self, folder: Path, task: int = 0) -> CompiledAdapter:
        """Compile the checkpoint in a folder against the base. Raises AdapterError."""
        compiled = compile_adapter(
            folder,
            self._loaded.sites.table,
            self._loaded.dtype,
            max_rank=self._config.max_lora_rank,
            model=self._loaded.twin,
            max_dense_delta=self._config.max_dense_delta,
            task=task,
            runs=self._loaded.twin_runs,
        )
        compiled = replace(compiled, bypass=self._ranks.cut(compiled.bypass))
        if compiled.bypass.prefix is not None:
            prefix = prefix_of_base(compiled.bypass.prefix, self._loaded.attention, self._loaded.states.shapes or {})
            return replace(compiled, bypass=replace(compiled.bypass, prefix=prefix))
        return compiled

    def _pack(self, compiled: CompiledAdapter) -> Blob:
        pin = self._loaded.device.type == "cuda"
        blob = self._interned(pack(compiled.bypass, self._loaded.sites.groups, self._loaded.dtype, pin=pin))
        if blob.num_elements > self._arena.numel():
            raise AdapterTooLarge(
                f"the adapter needs {blob.num_bytes} bytes on the device and --adapter-memory allows {self.arena_bytes}"
            )
        return blob

    def _check_beside_pinned(self, digest: str, blob: Blob) -> None:
        """Raise AdapterTooLarge for an adapter that would never get its place beside those that are pinned."""
        left = self._arena.numel() - self.ahead.pinned_size
        if blob.num_elements > left and digest not in self.residency.pinned:
            raise AdapterTooLarge(
                f"the adapter needs {blob.num_bytes} bytes on the device, and the pinned adapters leave "
                f"{left * self._arena.element_size()}"
            )

    def _interned(self, blob: Blob) -> Blob:
        """Return the blob with the shared pieces that other blobs on the host have already, so that these are one."""
        with self._lock:
            pieces = tuple(self._pieces.setdefault(piece.key, piece) for piece in blob.shared)
        return replace(blob, shared=pieces)

    def _folder_of(self, digest: str) -> Path:
        if self._config.store is not None:
            return self._config.store / digest
        if digest not in self._folders:
            raise InvalidAdapter(f"no adapter with digest {digest} was inspected")
        return self._folders[digest]


def arena_size(config: EngineConfig, loaded: LoadedModel) -> int:
    """Return the bytes of the memory of all adapters on the device."""
    linears = linear_groups(loaded.sites.groups, loaded.sites.table)
    return arena_bytes(
        config.adapter_memory,
        lora=lora_bytes(linears, config.max_lora_rank, loaded.dtype),
        stored=largest_stored_bytes(config.store, loaded.dtype),
        max_loras=config.max_loras,
        free=free_bytes(loaded.device),
    )


def _spill(config: EngineConfig, loaded: LoadedModel) -> Spill:
    divided = config.tensor_parallel_size > 1  # each rank has its own part, and leaves it in memory
    folder = None if config.store is None or divided else config.store.parent / "compiled"
    pin = loaded.device.type == "cuda"
    return Spill(folder, SPILL_FACTOR * config.host_adapter_memory, loaded.dtype, pin=pin)


def _settle(release: Future[None], _: Future[None]) -> None:
    give_back_free_memory()
    release.set_result(None)
