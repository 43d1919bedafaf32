"""The framework answers everything else, so a direct route differs from the others in nothing that a client sees."""

import pytest

from peftserve.server.api.tenancy.tenant import Tenant


async def test_what_is_refused_is_the_envelope(server, check_envelope):
    for path in ("/v1/completions", "/v1/chat/completions"):
        check_envelope(await server.http.post(path, content=b"{"), 400)
        messages = [{"role": "user", "content": "a"}]
        body = {"model": "nobody", "prompt": "a", "messages": messages}
        check_envelope(await server.http.post(path, json=body), 404, "model_not_found")
        check_envelope(await server.http.get(path), 405)
        check_envelope(await server.http.post(path + "/"), 404)


async def test_a_direct_route_stays_in_the_description_of_the_api(server):
    paths = (await server.http.get("/openapi.json")).json()["paths"]
    assert "post" in paths["/v1/completions"]
    assert "post" in paths["/v1/chat/completions"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/responses"])
async def test_where_there_is_no_room_nothing_is_read(server, check_envelope, path):
    """What is said of the body is said where there is room: under load a refusal has to be cheap."""
    admission = server.services.admission
    admission.enter(admission.capacity)
    for number in range(admission.capacity // admission.guaranteed):
        admission.enter(admission.guaranteed, Tenant(f"t{number}"))  # the places that others have beside it
    refused = await server.http.post(path, content=b"{")
    check_envelope(refused, 429, "queue_full")
    assert int(refused.headers["retry-after"]) > 0
    admission.leave(admission.capacity)
    check_envelope(await server.http.post(path, content=b"{"), 400)
