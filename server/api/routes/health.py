"""Probes: whether the server lives and takes requests. Open to everyone, without a key."""

import msgspec
from fastapi import APIRouter, Response

from ..http.errors import ENGINE_DEAD_MESSAGE, unavailable
from ..openai.answers import json_response
from ..services import ServicesOf
from .documentation import Operation

SILENT_SECONDS = 4.0  # without a sign of life; with a beat and a look, 5 s from the last one

router = APIRouter(tags=["Operations"])


class Health(msgspec.Struct):
    """The answer where all is well; what is not is a 503."""

    status: str = "ok"


@router.get("/health/live")
@Operation("Ask whether the server lives", Health())
async def live(services: ServicesOf) -> Response:
    """Answer 200 while the engine gives signs of life, whether or not it has loaded its model; 503 asks for a restart.

    An engine that has ended has `--engine-timeout` to be there again.
    """
    timeout = services.config.engine_timeout
    if timeout and services.engine.silence > timeout and not services.admission.draining:
        raise unavailable(ENGINE_DEAD_MESSAGE, "engine_dead")
    return json_response(Health())


@router.get("/health", operation_id="health")
@router.get("/health/", include_in_schema=False)  # as TRL asks
@router.get("/health/ready")
@Operation("Ask whether requests are welcome", Health())
async def ready(services: ServicesOf) -> Response:
    """Answer 200 while new requests are welcome: the model is loaded, runs, and the server is not shutting down.

    `/health` is the same, as vLLM has it.
    """
    services.admission.check_open()
    services.model()
    if services.engine.silence > SILENT_SECONDS:
        raise unavailable("The model's engine does not answer now; try again soon.", "engine_silent")
    if services.engine.stats.replicas == 0:
        raise unavailable("No replica of the model runs just now; one is being started.", "no_replica")
    if not services.preloaded:
        raise unavailable("Adapters are being loaded; try again soon.", "loading")
    return json_response(Health())
