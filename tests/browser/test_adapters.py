"""The page's adapters in Chromium: folders that are picked and dropped, refusals, versions, the default, deletion."""

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from peftserve.server.demo import DEMO_ADAPTERS

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a trainer leaves it: an adapter, and what is none of it."""
    made = tmp_path / "my adapter"
    shutil.copytree(DEMO_ADAPTERS["snake"], made)
    (made / "README.md").write_text("# Mine\n")
    (made / "training_args.bin").write_bytes(b"x")
    (made / "checkpoint-5").mkdir()
    shutil.copy(made / "adapter_config.json", made / "checkpoint-5")
    return made


def test_a_folder_becomes_an_adapter_and_goes_again(visit: Any, demo: Any, folder: Path) -> None:
    one = visit()
    page = one.open("adapters")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a folder").click()
    chooser.value.set_files(folder)
    upload = page.locator(".upload")
    assert upload.get_by_role("textbox", name="Name").input_value() == "my-adapter"
    skipped = upload.locator(".skipped").inner_text()
    assert "README.md" in skipped
    assert "training_args.bin" in skipped
    assert "checkpoint" not in skipped
    page.keyboard.type("mine")
    page.keyboard.press("Enter")
    row = page.locator('tr.row[data-name="mine"]')
    row.wait_for()
    assert row.locator("td").nth(1).inner_text() == "LORA"
    upload.get_by_role("button", name="Compare").click()
    one.ask_all()
    assert one.answer("mine") == "quiet_river_bridge"

    one.open("adapters")
    one.reload()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1))
    one.drop(folder)
    upload.get_by_role("textbox", name="Name").fill("mine")
    upload.get_by_role("button", name="Upload as version 2").click()
    row.get_by_role("button", name="mine", exact=True).click()
    detail = page.locator("tr.detail").filter(has_text="mine@1")
    detail.get_by_role("button", name="Make default", exact=True).first.click()
    row.get_by_text("default", exact=True).wait_for()
    assert demo.client.get("/v1/default-adapter").json() == {"adapter": "mine"}
    detail.get_by_role("button", name="Make it the newest").click()
    detail.get_by_text("mine@3").wait_for()
    page.get_by_role("button", name="Back to the base").click()
    page.get_by_text("the base", exact=True).wait_for()

    detail.get_by_role("button", name="Delete", exact=True).first.click()
    page.keyboard.press("Escape")
    assert row.is_visible()
    detail.get_by_role("button", name="Delete", exact=True).first.click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    row.wait_for(state="detached")
    page.get_by_role("button", name="Restore").click()
    row.wait_for()
    assert demo.client.delete("/v1/adapters/mine", params={"purge": True}).status_code == 200
    row.wait_for(state="detached")  # told by the server, not asked for


def test_refusals_are_the_servers_own_words(visit: Any, demo: Any, folder: Path, tmp_path: Path) -> None:
    one = visit()
    page = one.open("adapters")
    weights = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(weights[: len(weights) // 2])
    one.drop(folder)
    upload = page.locator(".upload").first
    upload.get_by_role("button", name="Upload").click()
    upload.locator(".error").filter(has_text="adapter_model.safetensors").wait_for()
    assert upload.get_attribute("data-state") == "refused"
    (folder / "adapter_model.safetensors").write_bytes(weights)
    one.reload()
    one.drop(folder)
    upload.get_by_role("textbox", name="Name").fill("demo")
    upload.get_by_role("button", name="Upload").click()
    upload.locator(".error").filter(has_text="demo").wait_for()  # the base's name

    pickle = tmp_path / "old"
    pickle.mkdir()
    (pickle / "adapter_config.json").write_text("{}")
    (pickle / "adapter_model.bin").write_bytes(b"x")
    one.reload()
    one.drop(pickle)
    upload.get_by_text("is a pickle file").wait_for()
    assert upload.get_by_role("button", name="Upload").is_disabled()
    upload.get_by_role("button", name="Dismiss").click()
    one.reload()
    one.drop(tmp_path / "old" / "adapter_model.bin")
    upload.get_by_text("is a pickle file").wait_for()
    assert {card["name"] for card in demo.client.get("/v1/adapters").json()["data"]} == {*DEMO_ADAPTERS}


def test_a_page_that_does_not_come_leaves_the_one_that_is_shown(visit: Any, demo: Any) -> None:
    one = visit()
    one.page.add_init_script("window.setInterval = () => 0")  # nobody but the user asks
    page = one.open()
    names = [f"n{number:03}" for number in range(150)]
    card = demo.client.get("/v1/adapters?limit=1").json()["data"][0]
    outcomes = [False, False, False, True]

    def answer(route: Any) -> Any:
        after = parse_qs(urlparse(route.request.url).query).get("after", [""])[0]
        if after and outcomes.pop():
            return route.fulfill(status=429, json={"error": {"message": "Ask again later."}})
        found = [name for name in names if name > after][:50]
        cards = [{**card, "name": name} for name in found]
        return route.fulfill(json={"object": "list", "data": cards, "has_more": found[-1] != names[-1]})

    page.route("**/v1/adapters?*", answer)
    page.get_by_role("tab", name="Adapters").click()
    page.get_by_text("Page 1: n000 to n049").wait_for()
    further, back = (page.get_by_role("button", name=name) for name in ("Next", "Back"))
    further.click()
    page.get_by_text("Ask again later.").wait_for()
    further.click()
    page.get_by_text("Page 2: n050 to n099").wait_for()
    further.click()
    page.get_by_text("Page 3: n100 to n149").wait_for()
    assert further.is_disabled()
    back.click()
    page.get_by_text("Page 2: n050 to n099").wait_for()


def test_a_route_keeps_an_adapter_until_it_is_forced(visit: Any, demo: Any) -> None:
    """And a thousand adapters are searched by the server, a page at a time."""
    snake = DEMO_ADAPTERS["snake"]
    files = [("files", (path.name, path.read_bytes())) for path in snake.iterdir()]
    names = [f"many-{number:02d}" for number in range(55)]
    for name in names:
        assert demo.client.post("/v1/adapters", data={"name": name}, files=files).status_code == 201
    demo.client.put("/v1/routes/held", json={"kind": "alias", "target": "many-54"})
    one = visit()
    page = one.open("adapters")
    page.locator("#search").fill("many-")
    page.get_by_text("Page 1: many-00 to many-49").wait_for()
    page.get_by_role("button", name="Next").click()
    page.get_by_text("Page 2: many-50 to many-54").wait_for()
    page.get_by_role("button", name="many-54", exact=True).click()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").filter(has_text="held").get_by_role("button", name="Delete anyway").click()
    page.get_by_text("Page 2: many-50 to many-53").wait_for()
    page.locator("#search").fill("nothing")
    page.get_by_text("No adapter is like this.").wait_for()
    demo.client.delete("/v1/routes/held")
    for name in names[:-1]:
        demo.client.delete(f"/v1/adapters/{name}", params={"purge": True})
