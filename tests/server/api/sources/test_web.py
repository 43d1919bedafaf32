import asyncio
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from peftserve.adapters.errors import AdapterTooLarge
from peftserve.server.api.sources import download
from peftserve.server.api.sources.place import Place, SourceFailed, SourceMissing, SourceSettings
from peftserve.server.api.sources.web import Guard, _is_meant, fetch_http

WEIGHTS = "/a/adapter_model.safetensors"
HERE = SourceSettings(hosts=("127.0.0.1",), allow_private=True)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.001)


def at(url, folder="/a"):
    return Place("http", f"{url}{folder}")


async def test_a_folder_is_fetched_with_its_query(site, staged, contents, adapter_bytes):
    site.add("/a b/c", adapter_bytes())
    tag = await fetch_http(at(site.url, "/a%20b/c/?sig=secret"), staged, HERE)
    assert contents(staged) == adapter_bytes()
    assert tag.startswith('"')
    assert site.paths() == [f"/a%20b/c/{name}?sig=secret" for name in adapter_bytes()]


@pytest.mark.parametrize("ranges", [True, False])
async def test_what_breaks_is_begun_again(site, staged, contents, adapter_bytes, ranges):
    """503 and a cut connection: the rest is asked for where the server can, else the same bytes are dropped."""
    site.add("/a", adapter_bytes())
    site.ranges = ranges
    site.faults[WEIGHTS] = [503, "cut", 500]
    await fetch_http(at(site.url), staged, HERE)
    assert contents(staged) == adapter_bytes()
    assert any("Range" in headers or "range" in headers for _, headers in site.asked)


async def test_a_file_that_changes_meanwhile_is_refused(site, staged, adapter_bytes):
    site.add("/a", adapter_bytes())
    site.faults[WEIGHTS] = ["cut"]
    whole = site.files[WEIGHTS]

    def answer(request, usual=site.answer):
        usual(request)
        if request.path == WEIGHTS:
            site.files[WEIGHTS] = b"?" * len(whole)

    site.answer = answer
    with pytest.raises(SourceFailed, match="changed"):
        await fetch_http(at(site.url), staged, HERE)


@pytest.mark.parametrize(
    ("faults", "error", "message"),
    [
        ([404], SourceMissing, "holds no adapter_model.safetensors; adapters are read from safetensors"),
        ([403], SourceFailed, "does not let this server read"),
        ([418], SourceFailed, "status 418"),
        (["gzip"], SourceFailed, "compressed"),
        ([503] * 4, SourceFailed, "cannot be reached"),
        (["http://example.com/x"], SourceFailed, "redirects to another host"),
        (["http://localhost/x"], SourceFailed, "redirects to another host"),
        (["file:///etc/passwd"], SourceFailed, "another kind"),
        (["http://a:b/"] * 4, SourceFailed, "does not answer"),
        ([WEIGHTS] * 9, SourceFailed, "too many redirects"),
    ],
)
async def test_every_fault_has_its_reason(site, staged, adapter_bytes, faults, error, message):
    site.add("/a", adapter_bytes())
    site.faults[WEIGHTS] = faults
    with pytest.raises(error, match=message) as caught:
        await fetch_http(at(site.url), staged, HERE)
    assert (caught.value.status_code, caught.value.body.code) == (400, "source_failed")


async def test_redirects_on_the_same_host_are_followed(site, staged, contents, adapter_bytes):
    site.add("/a", adapter_bytes())
    site.files["/elsewhere"] = site.files.pop(WEIGHTS)
    site.faults[WEIGHTS] = ["/elsewhere"]
    await fetch_http(at(site.url), staged, HERE)
    assert contents(staged) == adapter_bytes()


async def test_no_length_is_believed(site, staged, adapter_bytes):
    site.add("/a", {**adapter_bytes(), "adapter_model.safetensors": bytes(2 << 20)})
    with pytest.raises(AdapterTooLarge):
        await fetch_http(at(site.url), staged, HERE)


async def test_who_leaves_ends_the_fetch(site, staged, adapter_bytes):
    site.add("/a", adapter_bytes())
    held = threading.Event()
    site.faults[WEIGHTS] = [held]
    task = asyncio.create_task(fetch_http(at(site.url), staged, HERE))
    while WEIGHTS not in site.paths():
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    held.set()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://other.example/a", "not one that this server"),
        ("http://127.0.0.1/a/%2e%2e/b", "no name"),
        ("http://user:secret@127.0.0.1/a", "no name and password"),
        ("http:///a", "https://host/folder"),
        ("http://[::1/a", "malformed"),
        ("ftp://127.0.0.1/a", "begins with http"),
        ("127.0.0.1/a", "https://host/folder"),
    ],
)
async def test_addresses_that_are_refused_unasked(staged, uri, message):
    with pytest.raises(SourceFailed, match=message) as caught:
        await fetch_http(Place("http", uri), staged, HERE)
    assert "secret" not in caught.value.body.message


async def test_private_addresses_are_off_by_default(site, staged, adapter_bytes):
    site.add("/a", adapter_bytes())
    for host in ("127.0.0.1", "localhost"):
        place = Place("http", f"http://{host}:{site.port}/a")
        with pytest.raises(SourceFailed, match="public internet"):
            await fetch_http(place, staged, SourceSettings(hosts=("*",)))
    with pytest.raises(SourceFailed, match="no revisions"):
        await fetch_http(Place("http", f"{site.url}/a", "main"), staged, HERE)
    assert site.asked == []


async def test_the_connection_goes_to_the_address_that_was_checked(site, staged, contents, adapter_bytes, monkeypatch):
    """A name that leads elsewhere at the next look-up gains nothing: there is one look-up for each request."""
    site.add("/a", adapter_bytes())
    looked_up = []

    async def once(host, port, *, allow_private):
        looked_up.append(host)
        return ["127.0.0.1"]

    monkeypatch.setattr("peftserve.server.api.sources.web.addresses_of", once)
    place = Place("http", f"http://adapters.example:{site.port}/a")
    await fetch_http(place, staged, SourceSettings(hosts=("*.example",)))
    assert contents(staged) == adapter_bytes()
    assert {headers["host"] for _, headers in site.asked} == {f"adapters.example:{site.port}"}
    assert looked_up == ["adapters.example"] * 3  # its two files, and a tokenizer's that is not there


def test_hosts_are_meant_as_they_are_written():
    meant = [("a.example", "a.example", 80), ("a.example:81", "a.example", 81), ("*.example", "x.a.example", 1)]
    meant += [("*", "anything", 1), ("[::1]", "::1", 80), ("[::1]:8080", "::1", 8080), ("a.example", "a.example.", 80)]
    assert all(_is_meant(*each) for each in meant)
    others = [("a.example", "b.a.example", 80), ("a.example:81", "a.example", 80), ("*.example", "example", 1)]
    others += [("*.example", "evilexample", 1), ("a.example", "a.example.evil", 80), ("[::1]:8080", "::1", 80)]
    assert not any(_is_meant(*each) for each in others)


async def test_no_step_down_from_https():
    import httpx

    guard = Guard(("127.0.0.1",), allow_private=True)
    for url, before in [("http://127.0.0.1/", "https://127.0.0.1/"), ("http://127.0.0.1:81/", "http://127.0.0.1/")]:
        with pytest.raises(SourceFailed, match="another host or port"):
            await guard(httpx.URL(url), httpx.URL(before))
    (hop,) = await guard(httpx.URL("https://127.0.0.1/x"), httpx.URL("http://127.0.0.1/"))
    assert hop.extensions == {"sni_hostname": "127.0.0.1"}


async def test_https_checks_the_certificate_of_the_name_and_not_of_the_address(
    site, staged, contents, adapter_bytes, monkeypatch, tmp_path
):
    files = _certificate_of("adapters.example", tmp_path)
    site.secure(*files)
    site.add("/a", adapter_bytes())

    async def here(host, port, *, allow_private):
        return ["127.0.0.1"]

    monkeypatch.setattr("peftserve.server.api.sources.web.addresses_of", here)
    trusting = ssl.create_default_context(cafile=files[0])
    monkeypatch.setattr("peftserve.server.api.sources.web.tls_context", lambda: trusting)
    settings = SourceSettings(hosts=("*.example",))
    with pytest.raises(SourceFailed, match="cannot be reached"):
        await fetch_http(Place("http", f"https://other.example:{site.port}/a"), staged, settings)
    await fetch_http(Place("http", f"https://adapters.example:{site.port}/a"), staged, settings)
    assert contents(staged) == adapter_bytes()


def _certificate_of(host, folder):
    """Return the files of a certificate that signs itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    certificate, private = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate, private
