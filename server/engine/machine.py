"""What runs the steps: the model with its cache and its adapters, on one device or on this rank's part of it."""

import logging
from dataclasses import dataclass, replace

import torch

from peftserve.kernels.attention.layout import Limits
from peftserve.kernels.device.step_memory import StepMemory

from ..config import EngineConfig
from .adapters.mirror import Mirror, Ranks
from .adapters.service import AdapterService, arena_size
from .assembly import Products, lay_out_products, make_runner
from .memory import StateSlots, kv_pages, state_slots
from .model.loading import LoadedModel, load_model
from .model.placement import choose_device
from .model.runner import ModelRunner
from .model.state.pool import StatePool
from .parallel.division import add_up, divide
from .parallel.group import RankGroup, device_of_rank
from .parallel.place import Place
from .parallel.whole import keep_in_files

logger = logging.getLogger(__name__)

SPARE_FIELDS = 64  # of four bytes, for each sequence of a step: what its sampler may tell the device


@dataclass(frozen=True)
class Machine:
    """A model that is ready to run steps.

    config: as it was settled: what memory allows, and the ranks have agreed on. num_pages: of the KV cache.
    slots: of states. max_model_len: tokens of the longest sequence that fits. group: the ranks; None for one.
    """

    config: EngineConfig
    loaded: LoadedModel
    products: Products
    memory: StepMemory
    adapters: AdapterService
    states: StatePool | None
    slots: StateSlots
    runner: ModelRunner
    num_pages: int
    max_model_len: int
    group: RankGroup | None


def make_machine(config: EngineConfig, place: Place | None = None, mirror: Mirror | None = None) -> Machine:
    """Load the model and put together what runs it. Raises UnservableModel.

    place: of this process among the ranks, all of which do the same here; None for one. mirror: of the first rank.
    """
    torch.set_num_threads(config.num_threads or torch.get_num_threads())  # this thread's, whatever others set
    group = None if place is None else _join(config, place)
    loaded, division = load_model(config), None
    if group is not None:
        config = settled(config)
        division = divide(loaded, group, group.device, config.max_dense_delta)
        loaded = division.loaded
        config = replace(config, adapter_memory=group.least(arena_size(config, loaded)))
    products = lay_out_products(loaded, config.wide_columns)
    if division is not None and group is not None:
        add_up(division, group)
    memory = StepMemory(loaded.device, spare=config.max_running * SPARE_FIELDS)
    ranks = Ranks() if division is None else Ranks(division.cutter, mirror or Mirror())
    adapters = AdapterService(config, loaded, config.max_batch_tokens, memory, products.wide, ranks)
    slots = state_slots(config, loaded.states.bytes_per_sequence, loaded.device)
    config = replace(config, max_running=slots.sequences)
    shapes = loaded.states.shapes
    states = StatePool(shapes, sum(slots), loaded.device) if shapes else None
    num_pages = _num_pages(config, loaded, group)
    max_model_len = min(loaded.max_model_len, num_pages * config.page_size)
    limits = Limits(config.max_batch_tokens, config.max_running, max_model_len)
    runner = make_runner(config, loaded, products.fused, adapters.attachments, num_pages, limits, memory, states)
    if group is not None and place is not None:
        keep_in_files(loaded.twin, group, place.meeting.parent)
    return Machine(config, loaded, products, memory, adapters, states, slots, runner, num_pages, max_model_len, group)


def settled(config: EngineConfig) -> EngineConfig:
    """Return the configuration of several ranks: every step is launched, and none before the one ahead is known."""
    if config.async_scheduling or config.compile:
        logger.warning("with --tensor-parallel-size, steps are neither compiled nor launched ahead of each other")
    return replace(config, async_scheduling=False, compile=False, enforce_eager=True)


def _join(config: EngineConfig, place: Place) -> RankGroup:
    device = device_of_rank(choose_device(config.device), place)
    return RankGroup(place, device)


def _num_pages(config: EngineConfig, loaded: LoadedModel, group: RankGroup | None) -> int:
    pages = kv_pages(
        config.kv_cache_tokens,
        loaded.attention.layers,
        page_size=config.page_size,
        max_tokens=config.max_running * loaded.max_model_len,
        dtype=loaded.dtype,
        device=loaded.device,
    )
    return pages if group is None else group.least(pages)
