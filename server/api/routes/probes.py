"""What vLLM, and the clouds and balancers that know it, ask beside `/health`. Open to everyone, without a key."""

from importlib.metadata import version

import msgspec
from fastapi import APIRouter, Response

from ..openai.answers import json_response
from ..services import ServicesOf
from .documentation import Operation
from .health import Health, ready

router = APIRouter(tags=["Operations"])


class Version(msgspec.Struct):
    """The server's version."""

    version: str


class Load(msgspec.Struct):
    """The sequences in flight, in all processes."""

    server_load: int


@router.get("/version")
@Operation("Show the version", Version("0.1.0"))
async def show_version() -> Response:
    """Return the version of peftserve."""
    return json_response(Version(version("peftserve")))


@router.get("/ping", operation_id="ping")
@Operation("Ask whether requests are welcome", Health())
async def ping(services: ServicesOf) -> Response:
    """Answer as `/health` does, under the name by which SageMaker asks."""
    return await ready(services)


@router.post("/ping", operation_id="ping_by_post")
@Operation("Ask whether requests are welcome, by POST", Health())
async def ping_by_post(services: ServicesOf) -> Response:
    """Answer as `/health` does, under the name by which SageMaker asks."""
    return await ready(services)


@router.get("/load")
@Operation("Show the load", Load(0))
async def show_load(services: ServicesOf) -> Response:
    """Return how many sequences are in flight, in all processes."""
    return json_response(Load(services.admission.in_flight_everywhere))
