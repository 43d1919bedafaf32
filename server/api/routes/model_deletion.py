"""DELETE /v1/models/{id}, as OpenAI has it for fine-tuned models: an adapter by the name that requests give it."""

from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Path, Query, Response

from peftserve.adapters.names import DEFAULT

from ..http.errors import ApiError
from ..openai.answers import json_response
from ..services import ServicesOf
from .adapters import parse_name
from .documentation import Operation

router = APIRouter(tags=["Models"])


class DeletedModel(msgspec.Struct, kw_only=True):
    """The answer to a deletion."""

    id: str
    object: Literal["model"] = "model"
    deleted: bool = True


@router.delete("/v1/models/{model_id:path}")
@Operation("Delete a model", DeletedModel(id="sql"), errors=(400, 403, 404, 409))
async def delete_model(
    services: ServicesOf,
    model_id: Annotated[str, Path(description="An adapter's name, or one version of it.", examples=["sql"])],
    force: Annotated[bool, Query(description="Also if a route names it, which then answers 404.")] = False,
    purge: Annotated[bool, Query(description="At once, also what is kept to be restored.")] = False,
) -> Response:
    """Delete an adapter as `DELETE /v1/adapters/{name}` does. The base cannot be deleted; routes have their own way."""
    if model_id in (*services.base_ids, DEFAULT):
        raise ApiError(403, f"{model_id!r} cannot be deleted: only adapters can.", param="model", code="not_deletable")
    if services.adapters.routes.find(model_id) is not None:
        raise ApiError(
            403,
            f"{model_id!r} is a route; delete it with DELETE /v1/routes/{model_id}.",
            param="model",
            code="not_deletable",
        )
    reference = parse_name(model_id)
    await services.owned.library.delete(*reference, force=force, purge=purge)
    return json_response(DeletedModel(id=model_id))
