import asyncio
from contextlib import ExitStack

import pytest

from peftserve.server.api.http.errors import ApiError
from peftserve.server.api.tenancy.tenant import Tenant
from peftserve.server.api.upload_places import UploadPlaces


def test_one_who_uploads_without_end_leaves_each_other_some():
    places, greedy = UploadPlaces(capacity=4, guaranteed=1), Tenant("greedy")
    with ExitStack() as held:
        for tenant in (*[greedy] * 4, *(Tenant(f"t{i}") for i in range(4))):
            held.enter_context(places.take(tenant))
        for tenant in (greedy, Tenant("t0"), Tenant("late")):
            with pytest.raises(ApiError, match="8 uploads are being received") as refused, places.take(tenant):
                pass
            assert (refused.value.status_code, refused.value.body.code) == (429, "too_many_uploads")
            assert refused.value.headers["Retry-After"]
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(places.take(greedy))


async def test_it_is_idle_when_the_last_upload_has_ended():
    places = UploadPlaces()
    with places.take(Tenant("a")):
        with places.take(Tenant("b")):
            pass
        waiting = asyncio.create_task(places.idle())
        await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 60)
