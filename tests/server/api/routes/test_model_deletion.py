"""Models deleted as OpenAI's clients delete them."""

import openai
import pytest


async def test_an_adapter_is_deleted_by_the_official_client(server, engine, check_envelope):
    await server.upload("sql")
    await server.upload("sql", width=6)
    one = await server.openai.models.delete("sql@1")
    assert (one.id, one.object, one.deleted) == ("sql@1", "model", True)
    assert (await server.http.get("/v1/models/sql")).status_code == 200
    await server.openai.models.delete("sql")
    check_envelope(await server.http.get("/v1/models/sql"), 404, "model_not_found")
    with pytest.raises(openai.NotFoundError):
        await server.openai.models.delete("sql")


async def test_what_is_no_adapter_or_is_needed_stays(server, check_envelope):
    await server.upload("sql")
    await server.http.put("/v1/routes/best", json={"kind": "alias", "target": "sql"})
    for name in ("base", "default", "best"):
        check_envelope(await server.http.delete(f"/v1/models/{name}"), 403, "not_deletable")
    check_envelope(await server.http.delete("/v1/models/no/body"), 404, "model_not_found")
    check_envelope(await server.http.delete("/v1/models/sql"), 409)
    assert (await server.http.delete("/v1/models/sql?force=true")).json()["deleted"] is True
