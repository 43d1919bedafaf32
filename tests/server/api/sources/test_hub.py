import json

import pytest

from peftserve.server.api.sources.hub import fetch_hub
from peftserve.server.api.sources.place import Place, SourceFailed, SourceMissing, SourceSettings

COMMIT = "c0ffee" + "0" * 34
NOTHING = SourceSettings()


@pytest.mark.parametrize("uri", ["owner/name", "hub://owner/name", "hf://owner/name@main", "huggingface://owner/name"])
async def test_only_the_files_of_one_commit_are_fetched(hub, staged, contents, adapter_bytes, uri):
    hub.add("", {**adapter_bytes(), "README.md": b"#", "adapter_model.bin": b"pickle"})
    assert await fetch_hub(Place("hub", uri), staged, NOTHING) == COMMIT
    assert contents(staged) == adapter_bytes()
    resolved = [path for path in hub.paths() if "/resolve/" in path]
    assert resolved == [f"/owner/name/resolve/{COMMIT}/{name}" for name in adapter_bytes()]


async def test_a_private_repository_shows_its_token_to_the_hub_alone(hub, staged, contents, adapter_bytes, tmp_path):
    hub.add("/sub/folder", adapter_bytes())
    hub.token = "hf_secret"
    with pytest.raises(SourceMissing, match="may not read it"):
        await fetch_hub(Place("hub", "owner/name/sub/folder"), staged, NOTHING)
    (tmp_path / "token").write_text("hf_secret\n")
    settings = SourceSettings(hub_token_file=tmp_path / "token")
    assert await fetch_hub(Place("hub", "owner/name/sub/folder", "main"), staged, settings) == COMMIT
    assert contents(staged) == adapter_bytes()
    assert hub.store.asked
    assert not any("authorization" in {name.lower() for name in headers} for _, headers in hub.store.asked)


async def test_a_mirror_that_has_files_only_says_the_commit_with_each(hub, staged, contents, adapter_bytes):
    hub.describes = False
    hub.add("", adapter_bytes())
    assert await fetch_hub(Place("hub", "owner/name"), staged, NOTHING) == COMMIT
    assert contents(staged) == adapter_bytes()
    for place in (Place("hub", "owner/name", "nope"), Place("hub", "owner/name/absent"), Place("hub", "owner/absent")):
        with pytest.raises(SourceMissing, match="no repository"):
            await fetch_hub(place, staged, NOTHING)


async def test_experts_lie_beside_the_adapter(hub, staged, contents, adapter_bytes):
    files = adapter_bytes()
    config = json.loads(files["adapter_config.json"]) | {"arrow_config": {"task_adapter_names": ["ts_a", "ts_b"]}}
    hub.add("/router", {**files, "adapter_config.json": json.dumps(config).encode()})
    hub.add("/router/ts_a", files)
    hub.add("/ts_b", files)
    await fetch_hub(Place("hub", "owner/name/router"), staged, NOTHING)
    assert staged.experts == ["ts_a", "ts_b"]
    assert len(contents(staged)) == 6


@pytest.mark.parametrize(
    ("uri", "revision", "error", "message"),
    [
        ("owner/absent", None, SourceMissing, "no repository owner/absent"),
        ("owner/name", "nope", SourceMissing, "no revision 'nope'"),
        ("owner/name/absent", None, SourceMissing, "holds no adapter_config.json"),
        ("owner/name@a", "b", SourceFailed, "different revisions"),
        ("name", None, SourceFailed, "owner/name"),
        ("owner/../name", None, SourceFailed, "no name"),
        ("owner/na me", None, SourceFailed, "not the name"),
        ("s3://owner/name", None, SourceFailed, "begins with hub://"),
    ],
)
async def test_every_fault_has_its_reason(hub, staged, adapter_bytes, uri, revision, error, message):
    hub.add("", adapter_bytes())
    with pytest.raises(error, match=message):
        await fetch_hub(Place("hub", uri, revision), staged, NOTHING)
    assert staged.names == frozenset()


async def test_no_hub_and_no_token_are_told_without_a_trace(staged, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(SourceFailed, match="cannot be reached"):
        await fetch_hub(Place("hub", "owner/name"), staged, NOTHING)
    with pytest.raises(SourceFailed, match="cannot read its token") as caught:
        await fetch_hub(Place("hub", "owner/name"), staged, SourceSettings(hub_token_file=tmp_path / "absent"))
    assert str(tmp_path) not in caught.value.body.message + caplog.text
