"""The compilation of all contenders' GPU kernels in several processes, to spend the time of a lent GPU on measuring."""

import argparse
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import get_context

import torch

from .contender import Contender
from .problem import SHAPES, BypassProblem, Scenario, make_problem
from .roster import contenders_of


def precompile(options: argparse.Namespace, scenarios: Sequence[Scenario], end: float = float("inf")) -> None:
    """Run every contender once at each step. Triton keeps what it compiled on disk, for the measuring process.

    end: of the monotonic clock, which all processes share. What is not compiled by then is compiled when it is
    measured.
    """
    shares = [scenarios[start :: options.jobs] for start in range(options.jobs)]
    with get_context("spawn").Pool(options.jobs) as pool:
        pool.starmap(_run_once_each, [(options, share, end) for share in shares if share], chunksize=1)


def _run_once_each(options: argparse.Namespace, scenarios: Sequence[Scenario], end: float) -> None:
    """Run contenders on problems of one layer, whose kernels are those of all layers."""
    dtype, shape = getattr(torch, options.dtype), SHAPES[options.shape]
    contenders = contenders_of(options)
    for scenario in scenarios:
        if time.monotonic() > end:
            return
        problem = make_problem(scenario, shape, layers=1, dtype=dtype, device=options.device, join=True)
        for contender in contenders:
            _run_once(contender, problem)
        torch.cuda.empty_cache()


def _run_once(contender: Contender, problem: BypassProblem) -> None:
    """Run a contender. A failure here is ignored: it repeats, and is reported, where the contender is measured."""
    with suppress(Exception):
        if run := contender.prepare(problem):
            run()
            torch.cuda.synchronize()
