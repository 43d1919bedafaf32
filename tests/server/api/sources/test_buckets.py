import pytest

from peftserve.adapters.errors import AdapterTooLarge
from peftserve.server.api.sources import buckets
from peftserve.server.api.sources.place import Place, SourceFailed, SourceMissing, SourceSettings

NOTHING = SourceSettings()


async def test_an_adapter_comes_from_an_s3_server(s3, staged, contents, adapter_bytes):
    s3.add("team/sql lora", adapter_bytes())
    tag = await buckets.fetch_bucket(Place("s3", "s3://adapters/team/sql lora/"), staged, NOTHING)
    assert contents(staged) == adapter_bytes()
    assert tag.startswith('"')


async def test_gs_asks_the_same_way(site, staged, contents, adapter_bytes, monkeypatch):
    """Google's store speaks the XML form of its API, which is a plain GET of `/bucket/key`."""
    for name, value in {"GOOGLE_BASE_URL": site.url, "GOOGLE_SKIP_SIGNATURE": "true"}.items():
        monkeypatch.setenv(name, value)
    site.files = {f"/adapters/sql/{name}": content for name, content in adapter_bytes().items()}
    await buckets.fetch_bucket(Place("gs", "gcs://adapters/sql"), staged, NOTHING)
    assert contents(staged) == adapter_bytes()


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("s3://adapters/absent", SourceMissing, "holds no adapter_config.json"),
        ("s3://no-such-bucket/a", SourceMissing, "no bucket no-such-bucket"),
        ("s3://adapters/a/../b", SourceFailed, "no name"),
        ("s3://UP_/a", SourceMissing, "UP_"),
        ("s3://", SourceFailed, "s3://bucket/folder"),
        ("gs://adapters/a", SourceFailed, "begins with s3://"),
    ],
)
async def test_every_fault_has_its_reason(s3, staged, uri, error, message):
    with pytest.raises(error, match=message):
        await buckets.fetch_bucket(Place("s3", uri), staged, NOTHING)
    assert staged.names == frozenset()


async def test_more_than_the_limit_is_not_fetched(s3, staged, adapter_bytes):
    s3.add("large", {**adapter_bytes(), "adapter_model.safetensors": bytes(3 << 20)})
    with pytest.raises(AdapterTooLarge):
        await buckets.fetch_bucket(Place("s3", "s3://adapters/large"), staged, NOTHING)
    with pytest.raises(SourceFailed, match="no revisions"):
        await buckets.fetch_bucket(Place("s3", "s3://adapters/large", "main"), staged, NOTHING)


async def test_a_store_that_refuses_or_is_not_there(site, staged, monkeypatch):
    monkeypatch.setattr(buckets, "RETRY_SECONDS", 1)
    environ = {"AWS_ENDPOINT_URL": site.url, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    site.faults["/adapters/a/adapter_config.json"] = [403]
    with pytest.raises(SourceFailed, match=r"does not let this server read adapter_config\.json") as caught:
        await buckets.fetch_bucket(Place("s3", "s3://adapters/a"), staged, NOTHING)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(SourceFailed, match="not be reached"):
        await buckets.fetch_bucket(Place("s3", "s3://adapters/a"), staged, NOTHING)
    assert "secret" not in caught.value.body.message
