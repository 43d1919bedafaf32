"""The code that inductor writes for an H100, on a machine without a GPU: as text, which is neither compiled nor run.

Inductor asks torch and triton about the device; their answers are replaced by those for an H100. Knows no server.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import fx
from torch._dynamo.device_interface import CudaInterface
from torch._guards import detect_fake_mode
from torch._inductor import config
from torch._inductor.graph import GraphLowering
from triton.backends.compiler import GPUTarget

from peftserve.server.engine.model import inductor
from peftserve.server.engine.model.cutting import Piece

GPU = torch.device("cuda", 0)
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=1 << 16,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 << 30,
    L2_cache_size=50 << 20,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10,
    shared_memory_per_multiprocessor=228 << 10,
)
ANSWERS = {
    "is_available": True,
    "is_bf16_supported": True,
    "current_device": 0,
    "get_device_properties": H100,
    "get_compute_capability": 90,
}
LAUNCH = re.compile(r"^\s+(?:\w+ = )?(?:\w+\.run\(|extern_kernels\.|torch\.ops\.)", re.MULTILINE)


class _Written(Exception):
    """The written code, raised where inductor would load it."""


def write(piece: Piece) -> str:
    """Return the Python module, with its kernels, that inductor writes for a piece that was traced on a CPU."""
    there = _on_gpu(piece)
    with _pretending():
        try:
            inductor.compile_piece(there)
        except Exception as error:  # inductor wraps what is raised inside
            written = getattr(error, "inner_exception", None) or error.__cause__ or error
            if isinstance(written, _Written):
                return str(written)
            raise
    raise AssertionError("inductor has loaded what it wrote")


def num_launches(code: str) -> int:
    """Count the launches in a module: of its own kernels, and of operators and products that it calls."""
    _, _, call = code.partition("def call(")
    return len(LAUNCH.findall(call.partition("return (")[0]))


def _on_gpu(piece: Piece) -> Piece:
    graph = copy.deepcopy(piece.graph)
    fake = detect_fake_mode(piece.examples)
    assert fake is not None
    with fake, torch.no_grad():
        for node in graph.nodes:
            node.kwargs = {name: GPU if name == "device" else value for name, value in node.kwargs.items()}
            if node.op == "placeholder":
                node.meta["val"] = _moved(node.meta["val"])
        inputs = [node.meta["val"] for node in graph.find_nodes(op="placeholder")]
        _Noting(fx.GraphModule({}, graph), graph=graph).run(*inputs)
    (results,) = graph.output_node().args
    return Piece(piece.key, graph, tuple(graph.find_nodes(op="placeholder")), tuple(results))


class _Noting(fx.Interpreter):
    """An interpreter that notes each node's value in its meta data."""

    def run_node(self, node: fx.Node) -> Any:
        node.meta["val"] = super().run_node(node)
        return node.meta["val"]


def _moved(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=GPU)


@contextmanager
def _pretending() -> Iterator[None]:
    driver = triton.runtime.driver
    target = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0)
    with ExitStack() as stack:
        for name, answer in ANSWERS.items():
            stack.enter_context(patch.object(CudaInterface, name, staticmethod(_always(answer))))
        for name in ("current_device", "get_device_properties"):
            stack.enter_context(patch.object(CudaInterface.Worker, name, staticmethod(_always(ANSWERS[name]))))
        stack.enter_context(patch("torch.cuda.device_count", _always(1)))
        stack.enter_context(patch("torch.cuda.current_device", _always(0)))
        stack.enter_context(patch("torch.cuda.get_device_capability", _always((9, 0))))
        stack.enter_context(patch("torch.cuda.get_device_properties", _always(H100)))
        stack.enter_context(patch("torch.utils._triton.has_triton", _always(True)))
        stack.enter_context(patch("torch._inductor.scheduler.has_triton", _always(True)))  # imported by name
        stack.enter_context(patch.object(type(driver), "active", property(_always(target))))
        stack.enter_context(patch.object(GraphLowering, "compile_to_module", _stop))
        stack.enter_context(config.patch(fx_graph_cache=False, compile_threads=1))
        yield


def _always(answer: Any) -> Any:
    return lambda *_, **__: answer


def _stop(graph: GraphLowering) -> None:
    code, _ = graph.codegen()
    raise _Written(getattr(code, "value", code))
