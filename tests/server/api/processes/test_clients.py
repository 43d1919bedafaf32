from peftserve.server.api.processes.clients import HEADER, FromOthers, with_client


async def test_the_address_goes_along_and_none_can_be_made_up():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["client"])

    sent = [(b"accept", b"*/*"), (HEADER, b"10.0.0.1")]
    for client in (("192.0.2.1", 5), ("2001:db8::1", 6), None):
        headers = with_client(sent, {"client": client})
        await FromOthers(app)({"type": "http", "headers": headers, "client": ("unix", 0)}, None, None)
        assert (b"accept", b"*/*") in headers
    assert seen == [("192.0.2.1", 0), ("2001:db8::1", 0), None]
