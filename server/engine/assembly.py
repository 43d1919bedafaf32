"""The model's runner, put together in the way that its steps run fastest on this device.

Each faster way is taken only if it gives the logits of a plain pass: one product for several modules, compiled code
between products, CUDA graphs.
"""

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from peftserve.kernels.attention.factory import make_attention_backend
from peftserve.kernels.attention.layout import Limits
from peftserve.kernels.device.step_memory import StepMemory

from ..config import EngineConfig
from .adapters.attachments import Attachments
from .memory import free_bytes
from .model.errors import UnservableModel
from .model.fused import fuse_siblings, fused_rows, separate_modules
from .model.graphs import make_recorder, sizes_up_to
from .model.hooks import BypassHooks
from .model.inputs import InputMemory
from .model.kv_cache import KVCache, elements_per_token
from .model.loading import LoadedModel
from .model.packed_linear import pack_linears
from .model.runner import ModelRunner
from .model.self_check import StartCheck, run_largest_step
from .model.state.mixers import Mixers
from .model.state.parts import PartsMemory
from .model.state.pool import StatePool
from .model.wide import spare_columns, widen
from .staging import is_host

logger = logging.getLogger(__name__)

PACKED_SHARE = 0.25  # of the free memory, for second copies of weights in a faster layout
INDUCTOR_CACHE = "inductor"  # folder of the state folder
COPIED_SHARE = 0.25  # of the KV cache's size, for copies of what is decoded


class Products(NamedTuple):
    """The base's products as they run.

    fused: one linear for those that read one input, by group. wide: weights with spare columns, by group.
    packed: bytes of second copies of weights in a faster layout.
    """

    fused: dict[int, nn.Linear]
    wide: dict[int, torch.Tensor]
    packed: int


def lay_out_products(loaded: LoadedModel, wide_columns: int | None = None) -> Products:
    """Fuse the linears that read one input, give weights their spare columns, and pack weights where that is faster.

    wide_columns: as in the configuration.
    """
    sites, device = loaded.sites.groups, loaded.device
    fused = fuse_siblings(loaded.modules, sites)
    wide = widen(loaded.modules, sites, fused, spare_columns(wide_columns, device))
    if not is_host(device):
        torch.cuda.empty_cache()  # of the weights as they were: what is free is counted for pages and adapters
    products = [*fused.values(), *separate_modules(loaded.modules, sites, fused)]
    packed = pack_linears(products, int(free_bytes(device) * PACKED_SHARE))
    return Products(fused, wide, packed)


def make_runner(
    config: EngineConfig,
    loaded: LoadedModel,
    fused: dict[int, nn.Linear],
    attachments: Attachments,
    num_pages: int,
    limits: Limits,
    memory: StepMemory,
    states: StatePool | None = None,
) -> ModelRunner:
    """Allocate the KV cache and return the runner, in the fastest way that passes its checks.

    fused: from `lay_out_products`. num_pages: of the KV cache. limits: of all steps.
    memory: what a step tells the device goes through, which the backend of `attachments` may use too. states: slots
    for what the model keeps beside the cache.

    Raises UnservableModel if the paged cache does not give what the model gives, or the largest step does not run.
    """
    layers, dtype, device = loaded.attention.layers, loaded.dtype, loaded.device
    tokens = num_pages * config.page_size
    spare = int(tokens * sum(map(elements_per_token, layers.values())) * dtype.itemsize * COPIED_SHARE)
    most_graph_rows = sizes_up_to(_most_graph_rows(config))[-1]
    mixers = None if states is None else Mixers(loaded.modules, loaded.states.mixers, states)
    if mixers is not None:
        loaded.attention.joint = mixers.joint
    hooks = BypassHooks(
        loaded.modules,
        loaded.sites.groups,
        attachments.backend,
        attachments.side,
        loaded.experts,
        fused,
        fused_rows(device),
        attachments.columns,
        None if mixers is None else mixers.joint,
        loaded.sites.token_axes,
        loaded.states.norms,
        dtype,
    )
    runner = ModelRunner(
        loaded.model,
        loaded.attention,
        make_attention_backend([*layers.values()], config.page_size, dtype, device, limits, memory, spare),
        KVCache(layers, num_pages, config.page_size, dtype, device),
        hooks,
        attachments,
        InputMemory(memory, limits.rows, most_graph_rows),
        loaded.trace.logits.shape[-1],
        loaded.hidden,
        mixers,
        None if states is None else PartsMemory(memory, limits.rows, most_graph_rows, states.slots),
        loaded.spans,
    )
    check = StartCheck(loaded.rehearsals, limits, num_pages, config.page_size, loaded.trace.is_exact)
    _settle_products(runner, hooks, check)
    run_largest = partial(run_largest_step, runner, limits, num_pages, config.page_size)
    # Code and graphs that serve all steps cannot look at where the sequences of one begin.
    if not config.enforce_eager and loaded.spans is None:
        if config.compile or not is_host(device):
            _compile(runner, config, check, limits.rows)
        _capture_graphs(runner, config, check, device, run_largest)
    if not is_host(device):  # where it takes milliseconds, and where memory ends suddenly
        run_largest()
    return runner


def _settle_products(runner: ModelRunner, hooks: BypassHooks, check: StartCheck) -> None:
    """Check the logits, and give each module a product of its own where the model cannot take parts of one.

    Raises UnservableModel if the logits are wrong in both ways.
    """
    try:
        check.run(runner)
    except (RuntimeError, UnservableModel) as error:
        hooks.separate()
        check.run(runner)
        logger.warning("q, k and v, and gate and up, are multiplied one by one: %s", error)


def _capture_graphs(
    runner: ModelRunner, config: EngineConfig, check: StartCheck, device: torch.device, run_largest: Callable[[], None]
) -> None:
    """Capture graphs where the device has them; drop them unless logits are right, after the largest step as well."""
    recorder = make_recorder(device)
    if recorder is None:
        return
    try:
        runner.capture_graphs(recorder, _most_graph_rows(config))
        run_largest()
        check.run(runner)
    except (RuntimeError, UnservableModel) as error:
        runner.run_without_graphs()
        logger.warning("this model runs without CUDA graphs, so that it decodes slower: %s", error)


def _most_graph_rows(config: EngineConfig) -> int:
    return min(config.max_running, config.max_batch_tokens)


def _compile(runner: ModelRunner, config: EngineConfig, check: StartCheck, most_rows: int) -> None:
    """Compile the model where it and the machine allow that; drop the code unless its logits are right."""
    if config.store is not None:  # where a second start finds all that was compiled, unless the operator says otherwise
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(config.store.parent / INDUCTOR_CACHE))
    try:
        runner.compile(most_rows)
        check.run(runner)
    except Exception as error:  # the compiler's own errors share no class
        runner.run_uncompiled()
        check.run(runner)  # which tracing may not have changed
        logger.warning("this model runs without being compiled, so that it decodes slower: %s", error)
