"""The parts of a run on a lent GPU, independent of each other: the commands of each, with their time limits.

Knows commands and no results. The commands of a stage run at the same time, the stages of a part one after the other:
only what is not measured runs beside anything else.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PYTHON = sys.executable
PYTEST = [PYTHON, "-m", "pytest", "-p", "no:cacheprovider", "--maxfail", "5", "--durations", "3"]
# Unknown options in the configuration are those of plugins that these tests do not need.
PYTEST += ["-W", "ignore::pytest.PytestConfigWarning", "-o", "log_cli=true", "-o", "log_cli_level=WARNING"]
SERVER = ("fastapi", "httptools", "msgspec", "multipart", "prometheus_client", "uvicorn", "uvloop")
KIT = ("README.txt", "kit.tar.xz", "probe.py", "unpack.sh", "vllm_e2e.py")


@dataclass(frozen=True)
class Command:
    """A command line. seconds: after which it is stopped."""

    words: tuple[str, ...]
    seconds: float


Stage = Sequence[Command]


@dataclass(frozen=True)
class Part:
    """A part of a run. packages: modules that it imports and a machine may lack. folder, files: that it needs."""

    about: str
    stages: Sequence[Stage]
    packages: Sequence[str] = ()
    folder: Path | None = None
    files: Sequence[str] = ()
    hint: str = ""


@dataclass(frozen=True)
class Setting:
    """The setting of a run.

    device: "cpu" is a rehearsal at small sizes. out: for results. jobs: compiling processes.
    """

    device: str
    out: Path
    jobs: int = 12
    kit: Path | None = None

    @property
    def rehearses(self) -> bool:
        return self.device == "cpu"

    @property
    def results(self) -> str:
        return str(self.out / "results.jsonl")

    def script(self, seconds: float, name: str, *words: str) -> Command:
        return Command((PYTHON, "-m", f"benchmarks.{name}", *words), seconds)

    def tests(self, seconds: float, *words: str) -> Command:
        """PEFT's answers are computed on the CPU: by one thread each, or those of several tests wait for each other."""
        return Command(("env", "OMP_NUM_THREADS=1", *PYTEST, "--device", self.device, *words), seconds)

    def kernels(self, seconds: float, *words: str) -> Command:
        own = ("--device", self.device, "--out", str(self.out), "--no-plot")
        return Command((PYTHON, "-m", "benchmarks.kernels", *own, *words), seconds)

    @property
    def small(self) -> tuple[str, ...]:
        """Return the sizes for a rehearsal of the engine's steps."""
        return ("--device", "cpu", "--dtype", "float32", "--shape", "tiny", "--layers", "2", "--rounds", "1")


def correctness(setting: Setting) -> Part:
    engine = "tests/server/engine"
    return Part(
        "the kernels against float64, PEFT's tokens, graphs, sampler, all methods; all at the same time",
        [
            [
                setting.tests(120, "tests/kernels/bypass"),
                setting.tests(120, "tests/kernels/attention/triton", "tests/kernels/attention/torch"),
                setting.tests(120, "tests/end_to_end/test_triton_engine.py", f"{engine}/sampling"),
                setting.tests(120, "tests/end_to_end/test_engine_oracle.py", "-k", "llama or gemma2 or sinks"),
                setting.tests(120, "tests/end_to_end/test_methods.py", "-k", "in_one_batch and llama_biased and whole"),
                setting.script(60, "attention", "--check"),
            ]
        ],
    )


def suite(setting: Setting) -> Part:
    """Run what `correctness` leaves out. It takes so long that it only runs when asked for."""
    folders = ("tests/kernels", "tests/adapters", "tests/server/engine", "tests/end_to_end/test_engine_oracle.py")
    return Part(
        "the whole test suite, as far as it has to do with the device",
        [[setting.tests(280, folder) for folder in (*folders, "tests/end_to_end/test_methods.py")]],
    )


def decode(setting: Setting) -> Part:
    if setting.rehearses:
        sizes = (*setting.small, "--sequences", "1", "4", "--context", "32", "--adapters", "4")
        return Part(DECODE, [[setting.script(40, "engine.decode_step", *sizes, "--out", setting.results)]])
    compiled = ("--layers", "1", "--rounds", "0", "--adapters", "1")
    return Part(
        DECODE,
        [
            [setting.script(60, "engine.decode_step", *compiled)],
            [setting.script(90, "engine.decode_step", "--layers", "8", "--out", setting.results)],
            [setting.script(140, "engine.decode_step", "--layers", "32", "--out", setting.results)],
        ],
    )


DECODE = "a decode step of the engine by sequences and adapters, at 8 and at 32 layers, with profiles of both sides"


def kernels(setting: Setting) -> Part:
    about = "the bypasses beside vLLM's, SGLang's, PEFT's and torch's, and beside the base's products"
    if setting.rehearses:
        return Part(about, [[setting.kernels(60, "--shape", "smollm-135m", "--phase", "decode", "--minutes", "0.1")]])
    shape = ("--shape", "llama-8b", "--dtype", "bfloat16", "--jobs", str(setting.jobs))
    steps = [("1", "1"), ("16", "16"), ("64", "1"), ("64", "64"), ("256", "64")]
    return Part(
        about,
        [
            [setting.kernels(130, *shape, "--table", "--phase", "decode", "--minutes", "2")],
            [setting.kernels(60, *shape, "--table", "--phase", "prefill", "--minutes", "0.8")],
            *([setting.script(25, "kernels.overlap", *_overlap(setting, *step))] for step in steps),
        ],
    )


def _overlap(setting: Setting, tokens: str, adapters: str) -> Sequence[str]:
    return ("--tokens", tokens, "--adapters", adapters, "--out", setting.results)


def attention(setting: Setting) -> Part:
    words = ("--check",) if setting.rehearses else ("--out", str(setting.out / "attention.json"))
    return Part("paged attention beside torch's own", [[setting.script(90, "attention", *words)]])


def prefill(setting: Setting) -> Part:
    small = (*setting.small, "--prompts", "8x32", "--budget", "64")
    words = small if setting.rehearses else ("--layers", "8")
    command = setting.script(90, "engine.prefill_step", *words, "--out", setting.results)
    return Part("prompts through the engine, without and with adapters", [[command]])


def serve(setting: Setting) -> Part:
    words = ("--device", "cpu", "--rehearsal") if setting.rehearses else ("--device", "cuda")
    return Part(
        "traces through HTTP: a full batch in a closed loop, and S-LoRA's arrivals",
        [[setting.script(110, "serving.serve", *words, "--out", setting.results)]],
        packages=SERVER,
        hint="carry their wheels in ./wheels",
    )


def methods(setting: Setting) -> Part:
    small = (*setting.small, "--limit", "150", "--only", "LoRA,DoRA,IA3")
    words = small if setting.rehearses else ("--device", "cuda")
    own = (*words, "--seconds", "200", "--out", setting.results)
    return Part(
        "what each PEFT method costs in a decode step beside LoRA",
        [[setting.script(220, "methods", *own)]],
    )


def sweep(setting: Setting) -> Part:
    """Choose the kernels' designs; nothing on a CPU."""
    words = ("--tune", "--jobs", str(setting.jobs), "--minutes", "1")
    commands = [] if setting.rehearses else [[setting.kernels(140, *words, "--quick", "--phase", "decode")]]
    return Part("the sweep of designs: a table of the fastest for this GPU", commands)


def peers(setting: Setting) -> Part:
    """Run vLLM's kit and our engine at the same points. The first command's time covers vLLM's own limits."""
    beside = ("--results", setting.results)
    ours = setting.small if setting.rehearses else ("--layers", "8")
    decoding = ("--sequences", "1", "4", "--context", "32", "--adapters", "4") if setting.rehearses else ()
    shown = ("--layers", "2", "--tokens", "32") if setting.rehearses else ()
    prompts = ("--prompts", "8x32") if setting.rehearses else ("--prompts", "16x512")
    stages = [
        [setting.script(215, "engine.beside_vllm", "run", "--kit", str(setting.kit), *beside)],
        [setting.script(90, "engine.decode_step", *ours, *decoding, "--out", setting.results)],
        [setting.script(60, "engine.prefill_step", *ours, *prompts, "--out", setting.results)],
        [setting.script(20, "engine.beside_vllm", "table", *beside, *shown)],
    ]
    return Part(
        "vLLM end to end, and then our engine, on the same points",
        stages[1:] if setting.rehearses else stages,
        folder=None if setting.rehearses else setting.kit or Path("vllm_kit"),
        files=KIT,
        hint="--vllm-kit DIR or VLLM_KIT says where it is",
    )


def peft(setting: Setting) -> Part:
    small = ("--rounds", "1", "--requests", "2", "--prompt-tokens", "8", "--output-tokens", "4")
    words = ("--device", setting.device, *(small if setting.rehearses else ("--rounds", "2")))
    written = ("--out", str(setting.out / "engine_vs_peft_gpu.json"))
    return Part(
        "the engine beside transformers and PEFT", [[setting.script(80, "engine.engine_vs_peft", *words, *written)]]
    )


PARTS: Mapping[str, Callable[[Setting], Part]] = {
    "correctness": correctness,
    "decode": decode,
    "kernels": kernels,
    "attention": attention,
    "prefill": prefill,
    "peers": peers,
    "serve": serve,
    "methods": methods,
    "peft": peft,
    "sweep": sweep,
    "suite": suite,
}
UNASKED = tuple(name for name in PARTS if name != "suite")
