"""A server over HTTP without a model: real uvicorn, real adapters on disk, and an engine that is a few lines."""

import asyncio
import contextlib
import functools
import json
import socket

import httpx
import numpy
import openai
import pytest
from safetensors.numpy import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from peftserve.adapters.errors import AdapterTooLarge, InvalidAdapter
from peftserve.adapters.facts import AdapterFacts
from peftserve.server.api.app import create_app, make_connections, make_services
from peftserve.server.api.edges import tls_context
from peftserve.server.api.engine.interface import MEAN, EngineDead
from peftserve.server.api.engine.vectors import embed
from peftserve.server.api.http.server import HttpServer
from peftserve.server.api.lifecycle import keeping_of
from peftserve.server.api.opened import open_adapters
from peftserve.server.api.processes.pool import WorkerPool
from peftserve.server.config import EngineConfig, ServerConfig
from peftserve.server.wire.messages import (
    EngineStats,
    Logprob,
    ModelInfo,
    SequenceOutput,
    TokenLogprobs,
)
from tests.server.api.fake_server import starting

EOS = 1
PATIENCE = 60  # seconds; an idle machine takes none of them
VECTOR_WIDTH = 16
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ bos_token }}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if shout %}LOUD {% endif %}{% if add_generation_prompt %}assistant: {% endif %}"
)


class FakeEngine:
    """Answers with the prompt's tokens in turn, beginning behind the seed; ends at the end-of-sequence token.

    delay: seconds before each token. going: while it is cleared, there are none. error, error_kind: what every sequence
    fails with. Logprobs: -0.5 for the chosen token, lower for the ids behind it; the k-th sequence of a seeded request
    is less likely by k. facts: fields of the facts of adapters that are inspected from now on.
    """

    def __init__(self, info):
        self.info = info
        self.alive = True
        self.silence = 0.0
        self.stats_age = 0.0
        self.restarts = 0
        self.stats = EngineStats()
        self.delay = 0.0
        self.going = asyncio.Event()
        self.going.set()
        self.error = None
        self.error_kind = None
        self.facts = {}
        self.requests = []  # every AddRequest
        self.running = {}  # request id to its sink and the task that feeds it
        self.aborted = []
        self.released = []
        self.loaded = []
        self.pinned = []
        self.max_pins = 2
        self.level = "device"  # where loaded adapters are afterwards
        self._listeners = []

    def add_stats_listener(self, listener):
        self._listeners.append(listener)

    def publish(self, stats):
        self.stats = stats
        for listener in self._listeners:
            listener(stats)

    def die(self):
        self.alive = False
        for sink, task in self.running.values():
            task.cancel()
            sink.fail(EngineDead("killed at /secret/path"))
        self.running.clear()

    def submit(self, request, sink):
        if not self.alive:
            raise EngineDead("dead at /secret/path")
        self.requests.append(request)
        self.running[request.request_id] = sink, asyncio.create_task(self._answer(request, sink))

    def abort(self, request_id):
        if request_id in self.running:
            self.running.pop(request_id)[1].cancel()
            self.aborted.append(request_id)

    async def _answer(self, request, sink):
        for output in self._outputs(request):
            await asyncio.sleep(self.delay)
            await self.going.wait()
            if output.finish_reason is not None or output.error is not None:
                del self.running[request.request_id]
            sink.push(output)

    async def inspect_adapter(self, digest, path, tenant=""):
        config = json.loads((path / "adapter_config.json").read_text())
        if config["target_modules"] == ["nowhere"]:
            raise InvalidAdapter("target_modules matches no module", param="target_modules")
        facts = {"method": "LORA", "rank": config.get("r", 8), "num_bytes": 640, "primitives": {"low_rank": 2}}
        return AdapterFacts(**{**facts, "sites": 2, "consumed": 4, **self.facts})

    async def release_adapter(self, digest):
        self.released.append(digest)

    async def load_adapter(self, digest):
        self.loaded.append(digest)
        return self.level

    async def pin_adapters(self, digests):
        self.pinned = list(digests)[: self.max_pins]
        if len(digests) > self.max_pins:
            raise AdapterTooLarge(f"at most {self.max_pins} adapters can be pinned")

    async def embed(self, prompt, pooling=MEAN, adapters=(), salt="", **asked):
        return await embed(self, prompt, pooling, adapters, salt, **asked)

    def _outputs(self, request):
        if self.error is not None:
            failed = {"error": self.error, "error_kind": self.error_kind}
            yield SequenceOutput(request_id=request.request_id, token_ids=[], **failed)
            return
        sampling, prompt = request.sampling, request.prompt_token_ids
        first = {"cached_tokens": 16 if len(prompt) > 16 else 0, "queue_seconds": 0.001}
        if sampling.prompt_logprobs is not None:
            first["prompt_logprobs"] = [None, *(self._logprobs(t, sampling.prompt_logprobs, 0) for t in prompt[1:])]
        if request.pooling is not None:  # how often each token is there, modulo the width
            counts = numpy.bincount([token % VECTOR_WIDTH for token in prompt], minlength=VECTOR_WIDTH)
            first["pooled"] = counts.astype("<f4").tobytes()
        if sampling.max_tokens == 0:
            yield SequenceOutput(request_id=request.request_id, token_ids=[], finish_reason="length", **first)
        for i in range(sampling.max_tokens):
            token = prompt[((sampling.seed or 0) + i) % len(prompt)]
            stop = (token == EOS and not sampling.ignore_eos) or token in sampling.stop_token_ids
            stop = stop and i + 1 >= sampling.min_tokens
            last = "stop" if stop else "length" if i + 1 == sampling.max_tokens else None
            logprobs = None if sampling.logprobs is None else [self._logprobs(token, sampling.logprobs, sampling.seed)]
            yield SequenceOutput(
                request_id=request.request_id,
                token_ids=[token],
                logprobs=logprobs,
                finish_reason=last,
                stop_token_id=token if stop else None,
                **first,
            )
            first = {}
            if last:
                return

    def _logprobs(self, token, num_top, seed):
        size = self.info.vocab_size
        top = [Logprob((token + k) % size, -0.5 - k, k + 1) for k in range(num_top)]
        return TokenLogprobs(Logprob(token, -0.5 - (seed or 0), 1), top)


def _make_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox", "user: assistant: system:"], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return _make_tokenizer()


@pytest.fixture(scope="session")
def model_info():
    """Makes a ModelInfo; every field can be given."""

    def make(**fields):
        defaults = {
            "model_name": "base",
            "architecture": "LlamaForCausalLM",
            "dtype": "float32",
            "device": "cpu",
            "vocab_size": 400,
            "max_model_len": 128,
            "eos_token_ids": [EOS],
            "num_kv_pages": 64,
            "page_size": 16,
            "max_running": 4,
            "max_loras": 8,
            "max_adapter_rank": 64,
            "tokenizer": None,
            "chat_template": None,
            "special_tokens": {},
            "pid": 0,
            "hidden_size": VECTOR_WIDTH,
        }
        return ModelInfo(**{**defaults, **fields})

    return make


@pytest.fixture
def engine(model_info, tokenizer):
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    return FakeEngine(model_info(tokenizer=tokenizer.to_str(), chat_template=TEMPLATE, special_tokens=special))


@pytest.fixture
def make_server(engine, tmp_path):
    """`async with make_server(**fields of ServerConfig) as server`: server.http, server.openai, server.services."""

    @contextlib.asynccontextmanager
    async def make(engine=engine, **fields):
        config = ServerConfig(
            engine=EngineConfig(model="unused", max_running=4),
            state_dir=tmp_path / "state",
            served_model_name="base",
            **{"max_queue": 12, **fields},
        )
        pool, keeping = WorkerPool(0, None, None), keeping_of(config)
        async with open_adapters(config.state_dir, engine, "base", pool, keeping, config.other_model_names) as adapters:
            services = make_services(engine, config, adapters, [0])
            app, connections = create_app(services), make_connections(services)
            async with _uvicorn(app, connections, tls_context(config)) as url, _Clients(url) as clients:
                clients.engine = engine
                clients.services = services
                clients.config = config
                yield clients
            await services.watchers.close()

    return make


@pytest.fixture
async def server(make_server):
    async with make_server() as server:
        yield server


@pytest.fixture
async def speaker(make_server, engine, model_info):
    """A server whose model calls tools as Hermes does and thinks as Qwen does, and says what a test wants.

    `speaker.say(post, text)`: returns `post(words, seed)`, called so that the answer to the user's words is the text.
    """
    kept = {name: getattr(engine.info, name) for name in ("tokenizer", "chat_template", "special_tokens")}
    engine.info = model_info(**kept, max_model_len=8192)

    async def say(post, text):
        words = f"<s>{text}</s>"  # the engine repeats its prompt, and the seed is where it begins
        await post(words, 0)
        prompt = engine.requests[-1].prompt_token_ids
        return await post(words, len(prompt) - prompt[::-1].index(0))

    async with make_server(tool_call_parser="hermes", reasoning_parser="qwen3") as server:
        server.say = say
        yield server


@contextlib.asynccontextmanager
async def _uvicorn(app, connections, tls):
    listener = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(app, connections, tls=tls)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        await task
        listener.close()


class _Clients:
    def __init__(self, url):
        self.url = url
        self.http = httpx.AsyncClient(base_url=url, timeout=PATIENCE, verify=False)

    @functools.cached_property
    def openai(self):
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="key", max_retries=0, timeout=PATIENCE)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.http.aclose()
        if "openai" in vars(self):
            await self.openai.close()

    async def upload(self, name="sql", rank=8, fields=None, **content):
        """POST /v1/adapters with both files. fields: others of the form."""
        files = [("files", file) for file in adapter_bytes(rank, **content).items()]
        return await self.http.post("/v1/adapters", data={"name": name, **(fields or {})}, files=files)


def adapter_bytes(rank=8, *, width=4, target="q_proj"):
    """File name to content: an adapter that passes every check but the engine's."""
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": [target]}
    shapes = {"lora_A": (rank, width), "lora_B": (width, rank)}
    tensors = {f"base_model.model.{target}.{n}.weight": numpy.ones(s, numpy.float32) for n, s in shapes.items()}
    return {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": save(tensors)}


@pytest.fixture(name="adapter_bytes")
def adapter_bytes_fixture():
    return adapter_bytes


@pytest.fixture
def start(tmp_path):
    """Starts servers in processes of their own on one state folder, one after the other; see `fake_server.starting`."""
    with starting(tmp_path) as start:
        yield start


@pytest.fixture
def folder(tmp_path):
    """An adapter on disk."""
    folder = tmp_path / "sql"
    folder.mkdir()
    for name, content in adapter_bytes().items():
        (folder / name).write_bytes(content)
    return str(folder)


@pytest.fixture
def until():
    """Waits for a condition."""

    async def wait(condition):
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.005)

    return wait


@pytest.fixture
def check_envelope():
    """Asserts that an answer is OpenAI's error envelope with this status and code; returns the error."""

    def check(response, status, code=None):
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/json"
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert "Traceback" not in response.text
        assert "/secret" not in response.text
        assert error["code"] == code or code is None
        return error

    return check
