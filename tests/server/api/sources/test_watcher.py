import shutil

import pytest

from peftserve.adapters.errors import StoreFull
from peftserve.server.api.engine.interface import EngineDead
from peftserve.server.api.sources.watcher import FolderWatcher


@pytest.fixture
def watched(tmp_path, adapter_bytes):
    """A folder, and `put(name, rank)`, which writes an adapter into it."""
    folder = tmp_path / "watched"
    folder.mkdir()

    def put(name, rank=8, **files):
        (folder / name).mkdir(exist_ok=True)
        for file, content in {**adapter_bytes(rank), **files}.items():
            (folder / name / file).write_bytes(content)

    return folder, put


def watcher_of(server, folder):
    owned = server.services.owned
    return FolderWatcher(folder, owned.registry, owned.store, owned.library, 1 << 20)


async def names(server):
    return [f"{card['name']}@{card['version']}" for card in (await server.http.get("/v1/adapters")).json()["data"]]


async def test_folders_come_change_and_go(server, watched):
    folder, put = watched
    watcher = watcher_of(server, folder)
    put("sql")
    await watcher.look()
    assert await names(server) == []  # it may still be written
    await watcher.look()
    put("json", 4)
    (folder / ".hidden").mkdir()
    (folder / "a b").mkdir()
    (folder / "half").mkdir()
    (folder / "half" / "adapter_config.json").write_text("{}")
    for _ in range(3):
        await watcher.look()
    assert await names(server) == ["json@1", "sql@1"]
    put("sql", 16)
    await watcher.look()
    assert await names(server) == ["json@1", "sql@1"]
    await watcher.look()
    assert await names(server) == ["json@1", "sql@2"]
    shutil.rmtree(folder / "sql")
    await watcher.look()
    await watcher.look()
    assert await names(server) == ["json@1"]
    assert (await server.http.get("/v1/adapters/json")).json()["origin"]["kind"] == "folder"


async def test_what_was_uploaded_stays(server, watched):
    folder, put = watched
    watcher = watcher_of(server, folder)
    await server.upload("sql", rank=4)
    put("sql", 8)
    await watcher.start()
    assert await names(server) == ["sql@2"]
    shutil.rmtree(folder / "sql")
    await watcher.look()
    await watcher.look()
    assert await names(server) == ["sql@1"]
    shutil.move(folder, folder.parent / "gone")
    await watcher.look()
    assert await names(server) == ["sql@1"]


async def test_a_folder_that_cannot_be_read_deletes_nothing(server, watched, caplog):
    folder, put = watched
    watcher = watcher_of(server, folder)
    put("sql")
    await watcher.start()
    shutil.move(folder, folder.parent / "gone")
    for _ in range(3):
        await watcher.look()
    assert await names(server) == ["sql@1"]
    assert caplog.text.count("cannot be read") == 1


async def test_a_start_takes_only_what_has_changed(server, watched):
    folder, put = watched
    for name in ("kept", "changed", "gone"):
        put(name)
    await watcher_of(server, folder).start()
    assert await names(server) == ["changed@1", "gone@1", "kept@1"]
    put("changed", 4)
    shutil.rmtree(folder / "gone")
    staged = []
    store = server.services.owned.store
    object.__setattr__(server.services.owned, "store", _Counting(store, staged))
    await watcher_of(server, folder).start()
    assert await names(server) == ["changed@2", "kept@1"]
    assert len(staged) == 1


class _Counting:
    def __init__(self, store, staged):
        self._store, self._staged = store, staged

    def stage(self, limit):
        self._staged.append(limit)
        return self._store.stage(limit)


async def test_failures_are_told_once_for_each_state(server, watched, caplog):
    folder, put = watched
    watcher = watcher_of(server, folder)
    put("bad", **{"adapter_model.safetensors": b"nonsense"})
    put("base")
    for _ in range(4):
        await watcher.look()
    assert caplog.text.count("The folder bad is not taken") == 1
    assert caplog.text.count("The folder base is not taken") == 1
    put("bad", 4)
    for _ in range(3):
        await watcher.look()
    assert await names(server) == ["bad@1"]
    assert not list((server.config.state_dir / "staging").iterdir())


async def test_what_the_server_could_not_do_is_tried_again_ever_later(server, watched, caplog, monkeypatch):
    folder, put = watched
    watcher = watcher_of(server, folder)
    put("sql")
    add, faults, tries = server.services.owned.library.add, [StoreFull("no room"), EngineDead("gone")], []

    async def failing(*args, **options):
        tries.append(looks)
        if faults:
            raise faults.pop(0)
        return await add(*args, **options)

    monkeypatch.setattr(server.services.owned.library, "add", failing)
    looks = 0
    while looks < 12:
        await watcher.look()
        looks += 1
    assert (tries, await names(server)) == ([1, 3, 7], ["sql@1"])
    assert caplog.text.count("The folder sql is not taken as an adapter yet") == 1


async def test_what_a_route_names_stays(server, watched, caplog):
    folder, put = watched
    watcher = watcher_of(server, folder)
    put("sql")
    await watcher.start()
    server.services.owned.routes.put("prod", '{"kind": "alias", "target": "sql"}')
    shutil.rmtree(folder / "sql")
    for _ in range(3):
        await watcher.look()
    assert await names(server) == ["sql@1"]
    assert caplog.text.count("its adapter stays") == 1
