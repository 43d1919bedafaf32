"""The base, what it runs on, and what its answers are made with."""

from ...api.assistant import families, thinking
from .. import values
from .setting import COUNT, Setting

BASE = (
    Setting("model", "MODEL", values.text, "folder or hub id of the base, in Hugging Face format", computed="the demo"),
    Setting(
        "served-model-name",
        "NAME",
        values.text,
        "the base's id; of several all mean the base, and answers say the first",
        computed="folder or hub id",
        many=True,
        nargs="+",
    ),
    Setting("device", "DEVICE", values.one_of("auto", "cpu", "cuda"), "auto, cpu or cuda"),
    Setting(
        "dtype",
        "DTYPE",
        values.dtype,
        "of weights and activations: auto, bfloat16, float16 or float32; half and float, as vLLM spells two of them",
    ),
    Setting(
        "quantization",
        "FORM",
        values.text_or_none,
        "how to quantise a plain base while it is loaded: bnb-4bit (QLoRA's NF4), int8 (LLM.int8), fp8 (float8 "
        "weights), or a quantization_config as JSON; none: not",
        computed="as the checkpoint is",
    ),
    Setting("tensor-parallel-size", "N", COUNT, "processes, or GPUs, of this machine among which the base is divided"),
    Setting("max-model-len", "N", COUNT, "most tokens of prompt and output together", computed="the model's own limit"),
    Setting(
        "max-batch-tokens",
        "N",
        COUNT,
        "token budget of one step, of which a mixture's token takes one for each adapter",
    ),
    Setting("max-running", "N", COUNT, "sequences in one step"),
    Setting("kv-cache-tokens", "N", COUNT, "capacity of the KV cache", computed="what memory allows"),
    Setting("page-size", "N", COUNT, "tokens in one page of the KV cache"),
    Setting("prefix-caching", "", values.boolean, "reuse the KV pages of equal prompt beginnings"),
    Setting("num-threads", "N", COUNT, "CPU threads of the engine", computed="the cores"),
    Setting(
        "async-scheduling", "", values.boolean, "prepare a step while the one before it runs", computed="on a GPU only"
    ),
    Setting("compile", "", values.boolean, "on a CPU, compile steps at start, with a C++ compiler (GPUs always do)"),
    Setting("enforce-eager", "", values.boolean, "no CUDA graphs and nothing compiled: operator by operator"),
    Setting(
        "tool-call-parser",
        "NAME",
        values.one_of(*families.CHOICES),
        "how the model writes calls of tools; auto: as its chat template says; none: they are not read",
    ),
    Setting(
        "reasoning-parser",
        "NAME",
        values.one_of(*thinking.CHOICES),
        "how the model writes what it thinks; auto: as its chat template says; none: it is content",
    ),
    Setting(
        "chat-template",
        "FILE|TEMPLATE",
        values.template_source,
        "Jinja template of the base's chats, in place of its own: a file, or the template itself",
        computed="the model's own",
    ),
    Setting("enable-auto-tool-choice", "", values.boolean, "accepted for vLLM's sake: tools are always served"),
    Setting(
        "generation-config",
        "auto|none|DIR",
        values.text,
        "sampling defaults of requests: the model's own generation_config.json, none, or the one of a folder",
    ),
    Setting(
        "override-generation-config",
        "JSON",
        values.json_object,
        "sampling defaults that win over the file's, as an object",
        computed="none",
    ),
    Setting("trust-remote-code", "", values.boolean, "run Python code that comes with the model"),
)
