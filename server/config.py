"""The server's configuration: one frozen object, read at the top and handed down as plain values.

Defaults stand here and nowhere else. What a flag, a variable or a file may say instead is the command line's business.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "bfloat16", "float16", "float32"]


@dataclass(frozen=True)
class EngineConfig:
    """Settings of the engine.

    model: a local folder or a hub id in Hugging Face format.
    quantization: the form in which a plain base's weights are loaded, as `model/quantisation.py` names it; None for
    what the checkpoint has.
    tensor_parallel_size: processes among which the base is divided, each with a device of its own on a GPU.
    max_model_len: most tokens of prompt and output together; None takes the model's own limit.
    max_batch_tokens: token budget of one step, of which a token takes one for each of its adapters, at least one.
    max_running: sequences in one step.
    kv_cache_tokens: capacity of the KV cache; None fits it to the free memory.
    adapter_memory: bytes of the device's arena; None for what max_loras LoRAs of max_lora_rank take at all linears, or
    max_loras adapters as large as the largest in `store`, at most a tenth of the free memory.
    max_loras: adapters resident at once. max_lora_rank: largest rank that is taken.
    wide_columns: spare columns behind each weight, in which the adapters of long prompts lie; None for as many as help.
    host_adapter_memory: bytes of compiled adapters kept in host memory. max_cpu_loras: the same, as a number.
    max_dense_delta: most bytes that the full-rank deltas of one adapter, or its bases of full rank, may take.
    async_scheduling: prepare a step while the one before it runs; None for where it helps, which is on GPUs.
    enforce_eager: no CUDA graphs, and nothing compiled. compile: compile what lies between products, at start; on a
    GPU it is compiled anyway. Compiled code is kept beside `store`.
    generation_config: where the sampling parameters that requests leave out come from: `auto` for the model's own
    generation_config.json, `none` (or `vllm`) for OpenAI's defaults, or a folder that has such a file.
    override_generation_config: a JSON object whose values win over the file's.
    store: folder whose sub-folders, named by digest, hold the adapters' files.
    log_level: least level of what is logged, of all processes.
    """

    model: str
    device: Device = "auto"
    dtype: DType = "auto"
    quantization: str | None = None
    tensor_parallel_size: int = 1
    max_model_len: int | None = None
    max_batch_tokens: int = 2048
    max_running: int = 256
    kv_cache_tokens: int | None = None
    page_size: int = 16
    prefix_caching: bool = True
    adapter_memory: int | None = None
    max_loras: int = 32
    max_lora_rank: int = 512
    wide_columns: int | None = None
    host_adapter_memory: int = 1 << 30
    max_cpu_loras: int | None = None
    max_dense_delta: int = 1 << 30
    store: Path | None = None
    num_threads: int | None = None
    async_scheduling: bool | None = None
    enforce_eager: bool = False
    compile: bool = False
    generation_config: str = "auto"
    override_generation_config: str | None = None
    trust_remote_code: bool = False
    log_level: str = "info"


@dataclass(frozen=True)
class ServerConfig:
    """Settings of the API processes, with those of the engine process as `engine`.

    api_workers: number of API processes.
    preload: (name, folder) pairs of `--adapter`, loaded at start.
    preload_routes: (name, file) pairs of `--route`, put at start where there is no such route.
    allow_adapter_paths, allow_adapter_sources: folders below which, and other types of sources from which, requests may
    name adapters. allow_source_hosts: of sources over HTTP. allow_private_sources: also where their address is private.
    hub_token_file: a file with the token for the hub. timeout_source: seconds to get an adapter from a source; 0: no
    limit.
    adapter_sources: addresses with `{name}`, where adapters that are not registered are looked for when they are used.
    adapter_dir: a folder whose sub-folders are adapters for as long as they are there.
    allow_other_base: serve a state folder's adapters on another base than the one that they were made for.
    tool_call_parser: how the model writes calls of tools; `auto`: as its chat template says; `none`: they are not read.
    reasoning_parser: the same for how it writes what it thinks.
    chat_template: of the base, in place of its own. adapter_templates: render an adapter's chats by its own template.
    keep_versions: newest versions of a name that are kept; 0: all.
    keep_deleted: seconds for which a deleted adapter can be restored; 0: it goes at once.
    api_keys: of those who may do all. api_key_file: a file of keys, and of tenants.
    metrics_keys: of those who may read metrics only, which then ask for a key; none: everybody may.
    shared_adapters: tenants have their adapters in common.
    max_adapters_per_key: names that one key may have. max_adapter_bytes_per_key: bytes of their versions' files. 0: no
    limit.
    max_queue: sequences that may be in flight beyond max_running before new requests get 429.
    queue_timeout: seconds that a sequence may wait before it begins; 0: no limit.
    upload_limit: most bytes of one uploaded adapter. body_limit: of any other request's body.
    limit_header_bytes: of a request's line and headers together.
    limit_connections: in all processes; limit_connections_per_address: from one of them. 0: no limit.
    limit_body_memory: bytes of all bodies that are being received, beside small ones.
    timeout_headers, timeout_body, timeout_idle, timeout_write: seconds that a client may take for a request's head,
    between bytes of its body, between requests, and without reading anything of its answer. 0: no limit.
    grace_period: seconds that the server may take to end once it is told to, running requests and all.
    engine_timeout: seconds without a sign of life after which the engine is taken for hung; 0: never.
    engine_restart: whether an engine that has died or hangs is started again; the server exits otherwise.
    served_model_name: the base's id, which answers say. other_model_names: further names of it.
    uds: a Unix socket to listen on instead of the port. root_path: the prefix under which a proxy shows the server.
    ssl_certfile, ssl_keyfile, ssl_keyfile_password: for TLS. ssl_ca_certs: of those who certify clients.
    allowed_hosts: names, beside those of the loopback, by which a server that listens there without keys may be asked.
    forwarded_allow_ips: addresses and networks of proxies that are believed on the address which their clients see.
    allow_origins, allowed_methods, allowed_headers, allow_credentials: what web pages of other origins may ask; `*` is
    any.
    gzip: compress large answers for clients that take it.
    access_log: the form of a line for each request, or `off`. otlp_endpoint: where traces of requests go.
    audit_log: the file for a line about each change, or `-` for standard output.
    ui: serve the page at / and /ui.
    """

    engine: EngineConfig
    state_dir: Path
    host: str = "127.0.0.1"
    port: int = 8000
    api_workers: int = 1
    served_model_name: str | None = None
    other_model_names: tuple[str, ...] = ()
    preload: tuple[tuple[str, Path], ...] = ()
    preload_routes: tuple[tuple[str, Path], ...] = ()
    allow_adapter_paths: tuple[Path, ...] = ()
    allow_adapter_sources: frozenset[str] = frozenset()
    allow_source_hosts: tuple[str, ...] = ()
    allow_private_sources: bool = False
    hub_token_file: Path | None = None
    timeout_source: float = 600.0
    adapter_sources: tuple[str, ...] = ()
    adapter_dir: Path | None = None
    allow_other_base: bool = False
    api_keys: tuple[str, ...] = ()
    api_key_file: Path | None = None
    metrics_keys: tuple[str, ...] = ()
    shared_adapters: bool = False
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    chat_template: str | None = None
    adapter_templates: bool = False
    keep_versions: int = 0
    keep_deleted: float = 0.0
    max_adapters_per_key: int = 0
    max_adapter_bytes_per_key: int = 0
    max_queue: int = 1024
    queue_timeout: float = 0.0
    upload_limit: int = 4 << 30
    body_limit: int = 16 << 20
    limit_header_bytes: int = 32 << 10
    limit_connections: int = 4096
    limit_connections_per_address: int = 0
    limit_body_memory: int = 256 << 20
    timeout_headers: float = 10.0
    timeout_body: float = 60.0
    timeout_idle: float = 75.0
    timeout_write: float = 60.0
    grace_period: float = 25.0
    engine_timeout: float = 60.0
    engine_restart: bool = True
    uds: Path | None = None
    root_path: str = ""
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    ssl_keyfile_password: str | None = None
    ssl_ca_certs: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    forwarded_allow_ips: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    gzip: bool = True
    access_log: str = "off"
    otlp_endpoint: str | None = None
    audit_log: str | None = None
    ui: bool = True

    @property
    def log_level(self) -> str:
        return self.engine.log_level
