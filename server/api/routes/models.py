"""GET /v1/models: the base, and each adapter with the base as its parent, its own prefix off the context length."""

import asyncio

from fastapi import APIRouter, Response

from peftserve.adapters.names import DEFAULT
from peftserve.adapters.registry_reader import AdapterRecord

from ..openai.answers import json_response
from ..openai.responses import Model, ModelList
from ..services import Services, ServicesOf

router = APIRouter()

PAGE = 1000


@router.get("/v1/models")
async def list_models(services: ServicesOf) -> Response:
    models = [_base(services)]
    after = ""
    while records := await asyncio.to_thread(services.adapters.registry.page, after=after, limit=PAGE):
        models += [_adapter(services, record.name, record) for record in records]
        after = records[-1].name
    return json_response(ModelList(data=models))


@router.get("/v1/models/{model_id:path}")
async def get_model(services: ServicesOf, model_id: str) -> Response:
    if model_id == services.base_id:
        return json_response(_base(services))
    resolved = services.adapters.router.resolve(model_id)
    if not resolved.members:
        return json_response(_base(services))
    ref = resolved.members[0].ref
    name = str(ref) if model_id == DEFAULT else model_id
    return json_response(_adapter(services, name, services.adapters.registry.get(ref.name, ref.version)))


def _base(services: Services) -> Model:
    return Model(
        id=services.base_id,
        created=services.started,
        root=services.base_id,
        max_model_len=services.model().max_model_len,
    )


def _adapter(services: Services, name: str, record: AdapterRecord) -> Model:
    return Model(
        id=name,
        created=int(record.created),
        root=record.digest,
        parent=services.base_id,
        max_model_len=max(services.model().max_model_len - record.facts.virtual_tokens, 0),
    )
