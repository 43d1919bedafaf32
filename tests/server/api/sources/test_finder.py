import asyncio
import threading

from peftserve.server.api.sources import finder
from peftserve.server.api.sources.place import SourceSettings

CONFIG = "/sql/adapter_config.json"


async def complete(server, model="sql"):
    return await server.http.post("/v1/completions", json={"model": model, "prompt": "ab", "max_tokens": 1})


async def test_a_name_is_looked_for_once_however_many_wait(make_server, site, adapter_bytes):
    """Without a source, as ever; with one, the first use fetches it, and the host need not be public or allowed."""
    site.add("/sql", adapter_bytes())
    async with make_server() as server:
        assert (await complete(server)).status_code == 404
    async with make_server(adapter_sources=(f"{site.url}/{{name}}",)) as server:
        answers = await asyncio.gather(*(complete(server) for _ in range(8)))
        assert {answer.headers["x-peftserve-adapter"] for answer in answers} == {"sql@1"}
        assert site.paths().count(CONFIG) == 1
        card = (await server.http.get("/v1/adapters/sql")).json()
        assert (card["origin"]["type"], card["origin"]["uri"]) == ("http", f"{site.url}/sql")
        for model in ("sql@2", "default", "base", "a b", "-x", "sql/../x", "n" * 129):
            await complete(server, model)
        assert site.paths().count(CONFIG) == 1
        assert len(site.paths()) == 2


async def test_what_was_not_found_is_not_asked_for_again_at_once(
    make_server, site, adapter_bytes, check_envelope, monkeypatch
):
    monkeypatch.setattr(finder, "MAX_REMEMBERED", 2)
    async with make_server(adapter_sources=(f"{site.url}/{{name}}",)) as server:
        for _ in range(3):
            check_envelope(await complete(server), 404, "model_not_found")
        assert site.paths() == [CONFIG]
        for name in ("a", "b"):
            check_envelope(await complete(server, name), 404)
        site.add("/sql", adapter_bytes())
        assert (await complete(server)).status_code == 200  # as the newest two are remembered
        assert len(server.services.finder._failed) == 2


async def test_one_that_is_there_and_cannot_be_served_says_why(make_server, site, adapter_bytes, check_envelope):
    site.add("/sql", {**adapter_bytes(), "adapter_model.safetensors": b"nonsense"})
    site.faults["/down/adapter_config.json"] = [418]
    async with make_server(adapter_sources=(f"{site.url}/{{name}}",)) as server:
        for _ in range(2):
            check_envelope(await complete(server), 400, "invalid_adapter")
            check_envelope(await complete(server, "down"), 400, "source_failed")
        assert len(site.paths()) == 3
        assert not list((server.config.state_dir / "staging").iterdir())


async def test_places_are_asked_in_turn_and_folders_are_places(make_server, site, tmp_path, adapter_bytes):
    folder = tmp_path / "adapters" / "sql"
    folder.mkdir(parents=True)
    for name, content in adapter_bytes().items():
        (folder / name).write_bytes(content)
    templates = (f"{site.url}/{{name}}", f"{tmp_path}/adapters/{{name}}")
    async with make_server(adapter_sources=templates) as server:
        assert (await complete(server)).status_code == 200
        assert (await complete(server, "absent")).status_code == 404
        card = (await server.http.get("/v1/adapters/sql")).json()
        assert card["origin"] == {"kind": "source", "type": "path", "uri": "sql"}
    assert site.paths() == [CONFIG, "/absent/adapter_config.json"]


async def test_searches_are_bounded(make_server, site, check_envelope, monkeypatch, until):
    monkeypatch.setattr(finder, "MAX_SEARCHES", 2)
    held = threading.Event()
    site.faults = {f"/{name}/adapter_config.json": [held] for name in "ab"}
    async with make_server(adapter_sources=(f"{site.url}/{{name}}",)) as server:
        waiting = [asyncio.create_task(complete(server, name)) for name in "ab"]
        await until(lambda: len(server.services.finder._searches) == 2)
        refused = await complete(server, "c")
        check_envelope(refused, 429, "too_many_searches")
        assert refused.headers["retry-after"]
        held.set()
        await asyncio.gather(*waiting)
        await server.services.finder.close()


def test_the_operators_places_need_no_other_permission():
    for template, root in (("/srv/{name}", "/srv"), ("/srv/x-{name}/v1", "/srv"), ("/{name}", "/"), ("{name}", ".")):
        settings = finder._settings_of(template, finder.parse_place(template), SourceSettings())
        assert [str(folder) for folder in settings.folders] == [root]
