"""The trial of one type of model: a small checkpoint and its adapters, served in one batch, beside what PEFT answers.

A verdict is `exact`, or says at its beginning what there was instead: `refused`, `failed`, `wrong`, `not built`; or
`not in PEFT`, which has no such adapter for such a base.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from peftserve.adapters.errors import AdapterError
from peftserve.server.engine.model.errors import UnservableModel
from peftserve.server.offline.llm import LLM
from peftserve.server.wire.messages import SamplingParams

from .adapters import make_adapter
from .checkpoint import write_checkpoint
from .reference import Answer, answer, load, uncached
from .setting import Setting

BASE = "base"
NEW_TOKENS = 8
TOLERANCE = 2e-3  # of a log-probability
CLOSE = 3e-5  # nearer than what a batch's other shapes explain
ENGINE: Mapping[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "num_threads": 1,
    "max_batch_tokens": 16,
    "max_running": 16,
    "kv_cache_tokens": 2048,
    "adapter_memory": 64 << 20,
    "max_loras": 4,
}

Verdicts = dict[str, str]


def run_trial(model_type: str, setting: Setting, folder: Path) -> Verdicts:
    """Try a type of model in a folder. Returns a verdict for the base and each method, or for the base alone."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        write_checkpoint(model_type, setting.shape(), setting.seed, folder / "base")
        prompts = _prompts(setting)
        expected = {BASE: _answers(load(folder / "base"), prompts)}
    except Exception as error:  # of whatever transformers does
        return {BASE: f"not built: {first_line(error)}"}
    return _served(folder, prompts, setting, expected)


def first_line(error: BaseException) -> str:
    """Return a short line that says what an error is."""
    text = str(error).strip() or type(error).__name__
    known = isinstance(error, UnservableModel | AdapterError)
    return ("" if known else f"{type(error).__name__}: ") + text.splitlines()[0][:200]


def _prompts(setting: Setting) -> list[list[int]]:
    """Draw prompts of ordinary tokens: neither the first ones nor the last, which may be special."""
    random, vocabulary = Random(setting.seed), setting.shape().vocabulary
    return [[random.randrange(3, vocabulary - 24) for _ in range(length)] for length in setting.lengths]


def _answers(model: Any, prompts: Sequence[list[int]]) -> list[Answer]:
    answers = [answer(model, prompt, NEW_TOKENS) for prompt in prompts]
    if not all(math.isfinite(logprob) for given in answers for logprob in given.logprobs):
        raise ValueError("its logits are no numbers")
    return answers


def _with_adapters(
    folder: Path, prompts: Sequence[list[int]], setting: Setting, expected: dict[str, list[Answer]]
) -> Verdicts:
    """Make the adapters, and add what PEFT answers with each to `expected`; else a verdict says why there is none."""
    verdicts: Verdicts = {}
    for method in setting.methods:
        try:
            adapted = make_adapter(load(folder / "base"), method, setting.seed, folder / method)
            expected[method] = _answers(adapted, prompts)
        except Exception as error:  # of whatever PEFT does
            verdicts[method] = f"not in PEFT: {first_line(error)}"
    return verdicts


def _served(
    folder: Path, prompts: Sequence[list[int]], setting: Setting, expected: dict[str, list[Answer]]
) -> Verdicts:
    """Serve the base alone, and if it is exact, everything in one batch."""
    columns = (BASE, *setting.methods)
    try:
        llm = LLM(folder / "base", **ENGINE)
    except UnservableModel as error:
        return dict.fromkeys(columns, f"refused: {first_line(error)}")
    except Exception as error:  # which a start should not raise
        return dict.fromkeys(columns, f"failed: at start, {first_line(error)}")
    with llm:
        verdicts = _compared(llm, [BASE], folder, prompts, expected)
        if verdicts[BASE] != "exact":
            return dict.fromkeys(columns, verdicts[BASE])
        unmade = _with_adapters(folder, prompts, setting, expected)
        refused = _uploaded(llm, folder, [name for name in expected if name != BASE])
        served = [name for name in expected if name not in refused]
        return unmade | refused | _compared(llm, served, folder, prompts, expected)


def _uploaded(llm: LLM, folder: Path, methods: Iterable[str]) -> Verdicts:
    refused: Verdicts = {}
    for method in methods:
        try:
            llm.add_adapter(method, folder / method)
        except AdapterError as error:
            refused[method] = f"refused: {first_line(error)}"
        except Exception as error:  # which an upload should not raise
            refused[method] = f"failed: at upload, {first_line(error)}"
    return refused


def _compared(
    llm: LLM,
    names: Sequence[str],
    folder: Path,
    prompts: Sequence[list[int]],
    expected: Mapping[str, list[Answer]],
) -> Verdicts:
    """Answer all prompts for all names in one batch, and compare."""
    sampling = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True, logprobs=0)
    asked = [(name, i) for i in range(len(prompts)) for name in names]
    try:
        completions = llm.generate(
            [prompts[i] for _, i in asked],
            adapter=[None if name == BASE else name for name, _ in asked],
            sampling=sampling,
        )
    except Exception as error:  # whatever a step raises
        return dict.fromkeys(names, f"failed: {first_line(error)}")
    verdicts = dict.fromkeys(names, "exact")
    for (name, i), got in zip(asked, completions, strict=True):
        logprobs = [report.chosen.logprob for report in got.logprobs or ()]
        if verdicts[name] == "exact" and (difference := _difference(got.token_ids, logprobs, expected[name][i])):
            also = _of_plain_pass(folder, prompts[i], expected[name][i]) if name == BASE else ""
            verdicts[name] = f"wrong: {difference}{also}"
    return verdicts


def _difference(token_ids: Sequence[int], logprobs: Sequence[float], wanted: Answer) -> str:
    """Return how an answer differs from what is wanted, up to the first token of which neither can be sure."""
    for i in range(wanted.sure):
        if token_ids[i] != wanted.token_ids[i]:
            return f"token {i} is another"
        off = abs(logprobs[i] - wanted.logprobs[i])
        if not off <= TOLERANCE:
            return f"token {i} is off by {off:.2g}"
    return ""


def _of_plain_pass(folder: Path, prompt: Sequence[int], wanted: Answer) -> str:
    """Say so where transformers' own plain pass differs from its generation, too."""
    try:
        plain = uncached(load(folder / "base"), prompt, wanted)
    except Exception:
        return ""
    off = max(abs(a - b) for a, b in zip(plain, wanted.logprobs, strict=True))
    return f" (transformers' own passes with and without a cache differ by {off:.2g})" if off > CLOSE else ""
