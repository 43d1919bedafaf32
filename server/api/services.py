"""The services that the routes share, made once by `create_app` and found through the request's app."""

import copy
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

from fastapi import Depends, Request
from msgspec.structs import replace

from peftserve.adapters.names import VersionRef
from peftserve.adapters.ownership import Actor
from peftserve.adapters.quotas import Quota
from peftserve.adapters.resolved import Member, Resolved
from peftserve.adapters.routing.query import Vector
from peftserve.adapters.staging import StagedUpload
from peftserve.adapters.store import ADAPTERS

from ..config import ServerConfig
from ..model_files import model_id
from ..wire.messages import AdapterLevel, ModelInfo
from .admission import Admission
from .engine.in_flight import InFlight
from .engine.interface import EngineDead, RemoteEngine
from .http.auth import TENANT
from .http.errors import ApiError, unavailable
from .http.threads import entered
from .metrics.requests import Metrics
from .opened import Adapters, OwnedAdapters
from .processes.searches import Finder
from .request_lease import RequestLease
from .shadows import Shadows
from .sources.fetchers import Sources
from .sources.place import SourceSettings
from .tenancy.buckets import TokenBuckets
from .tenancy.keyring import Keyring
from .tenancy.spending import Spending, TokenUse
from .tenancy.tenant import SERVER, Tenant
from .text.adapter_tokenizers import AdapterTokenizers, Speech
from .text.tokenizer import Tokenizer
from .upload_places import UploadPlaces
from .watching.watchers import Watchers

MOST_VIEWS = 256  # of the adapters, of those who asked last


@dataclass
class _Shared:
    """What all views of a process's services make at first use, and have in common.

    views: the adapters as those see them who asked last. sources: which all fetches take their turns at.
    """

    tokenizer: Tokenizer | None = None
    speeches: AdapterTokenizers | None = None
    sources: Sources | None = None
    views: OrderedDict[Actor, Adapters] = field(default_factory=OrderedDict)


@dataclass
class Services:
    """All that the routes of one process share, as one who asks sees it.

    started: Unix time of the server's start, in seconds. keys: who may ask. buckets: of tokens.
    tenant: who asks.
    """

    config: ServerConfig
    engine: RemoteEngine
    adapters: Adapters
    admission: Admission
    shadows: Shadows
    metrics: Metrics
    base_id: str
    started: int
    keys: Keyring = field(default_factory=Keyring)
    buckets: TokenBuckets = field(default_factory=TokenBuckets, repr=False)
    uploads: UploadPlaces = field(default_factory=UploadPlaces, repr=False)
    tenant: Tenant = SERVER
    finder: Finder | None = None  # set where the operator names places to look for adapters in
    preloaded: bool = True  # False until serve() has loaded the adapters of the command line
    watchers: Watchers = field(default_factory=Watchers)  # set by make_services()
    examples: InFlight[Vector] = field(default_factory=InFlight, repr=False)  # of routes, that the base runs
    _shared: _Shared = field(default_factory=_Shared, repr=False)

    def seen_by(self, tenant: Tenant) -> "Services":
        """Return the services as they are for one who asks. Raises StateUnusable."""
        services, views = copy.copy(self), self._shared.views
        actor = tenant.actor(self.config.shared_adapters)
        if actor not in views:
            views[actor] = self.adapters.seen_by(actor)
            while len(views) > MOST_VIEWS:
                views.popitem(last=False)
        views.move_to_end(actor)
        services.tenant, services.adapters = tenant, views[actor]
        return services

    @property
    def actor(self) -> Actor:
        """Who asks, as one who sees and changes adapters."""
        return self.tenant.actor(self.config.shared_adapters)

    @cached_property
    def base_ids(self) -> frozenset[str]:
        """All names of the base."""
        return frozenset({self.base_id, *self.config.other_model_names})

    @property
    def owned(self) -> OwnedAdapters:
        """The adapters, for routes that only the primary process answers."""
        assert isinstance(self.adapters, OwnedAdapters)
        return self.adapters

    @property
    def sources(self) -> Sources:
        """The places from which requests may have adapters fetched."""
        if self._shared.sources is None:
            self._shared.sources = Sources(source_settings(self.config))
        return self._shared.sources

    def model(self) -> ModelInfo:
        """Return the facts of the model. Raises EngineDead, ApiError 503 while the model loads."""
        if self.engine.info is None and self.engine.alive:
            raise unavailable("The model is being loaded; try again soon.", "loading")
        if self.engine.info is None or not self.engine.alive:
            raise EngineDead("the engine is not running")
        return self.engine.info

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer, made at first use. Raises what `model` raises."""
        info = self.model()
        if self._shared.tokenizer is None:
            template = self.config.chat_template
            self._shared.tokenizer = Tokenizer(info if template is None else replace(info, chat_template=template))
        return self._shared.tokenizer

    async def speech_of(self, resolved: Resolved) -> Speech:
        """Return how what answers reads and writes: an adapter alone in its own words, all else in the base's.

        The adapters have to be held meanwhile. Raises AdapterDamaged, and what `model` raises.
        """
        base = self.tokenizer()
        if len(resolved.weights()) != 1:
            return Speech(base)
        if self._shared.speeches is None:
            store, templates = self.config.state_dir / ADAPTERS, self.config.adapter_templates
            self._shared.speeches = AdapterTokenizers(store, base, self.model(), templates)
        return await self._shared.speeches.of(
            resolved.members[0].ref.digest, resolved.vocabulary(self.model().vocab_size)
        )

    async def tokenizer_of(self, resolved: Resolved) -> Tokenizer:
        """Return the tokenizer that makes the prompts and the texts of what answers. Raises what `speech_of` does."""
        return (await self.speech_of(resolved)).tokenizer

    def drain(self) -> None:
        """Take no new requests from now on, and give up what no client waits for."""
        self.admission.drain()
        self.shadows.stop()

    @asynccontextmanager
    async def staging(self) -> AsyncIterator[StagedUpload]:
        """Hold a place for an upload, and its files, while the block runs. Raises ApiError 429, AdapterError."""
        with self.uploads.take(self.tenant):
            async with entered(self.owned.store.stage, self.config.upload_limit) as staged:
                yield staged

    async def load(self, ref: VersionRef) -> AdapterLevel:
        """Bring a version to the device ahead of use, and return where it is then: nothing can delete it meanwhile.

        To be awaited in the same turn of the event loop as the look-up of `ref`. Raises AdapterError, EngineDead.
        """
        held = Resolved((Member(ref, 1.0),), str(ref), ref.name)
        with self.adapters.leases.held(held):
            return await self.engine.load_adapter(ref.digest)

    def turn_away(self) -> None:
        """Raise ApiError 429 or 503 where there is no room for a request, whatever it asks for.

        So what is refused under load is neither received nor parsed first.
        """
        try:
            self.admission.check_room(self.tenant)
        except ApiError:
            self.metrics.count_tenant(self.tenant.shown, "refused", 0, 0)
            raise

    def hold(self, resolved: Resolved, sequences: int, use: TokenUse | None = None) -> RequestLease:
        """Reserve room for a request's sequences and its adapters, for as long as it runs. Raises ApiError 429 or 503.

        use: of its tokens, which is kept up to date; None where nobody pays for them.
        To be called in the same turn of the event loop as the look-up of `resolved`.
        """
        spending = Spending(self.buckets, self.tenant, use or TokenUse())
        return RequestLease(self.admission, self.adapters.leases, self.metrics, resolved, sequences, spending)


def source_settings(config: ServerConfig) -> SourceSettings:
    """Return what requests may name as sources."""
    return SourceSettings(
        config.allow_adapter_sources,
        config.allow_adapter_paths,
        config.allow_source_hosts,
        config.allow_private_sources,
        config.hub_token_file,
        config.timeout_source,
    )


def quota_of(config: ServerConfig) -> Quota:
    """Return what each who asks may keep, unless more is said of him."""
    return Quota(config.max_adapters_per_key, config.max_adapter_bytes_per_key)


def keyring_of(config: ServerConfig) -> Keyring:
    """Return the keys that are known. Raises KeyFileError."""
    return Keyring(config.api_keys, config.api_key_file, quota_of(config))


def base_id(config: ServerConfig) -> str:
    """Return the base's name to clients: the operator's, else the model folder's or the hub's."""
    if config.served_model_name is not None:
        return config.served_model_name
    return model_id(config.engine.model)


async def get_services(request: Request) -> Services:
    """Return the services of the request's app, as who asks sees them.

    Async, as the framework would run it on a thread otherwise.
    """
    services: Services = request.app.state.services
    return services.seen_by(request.scope[TENANT])


ServicesOf = Annotated[Services, Depends(get_services)]
