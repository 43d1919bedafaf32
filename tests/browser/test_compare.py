"""The page's playground in Chromium: from nothing to answers side by side, with the mouse and without."""

import re
import time
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_two_clicks_compare_adapters(visit: Any) -> None:
    """What somebody sees who has started the demo and reads nothing."""
    one = visit()
    page = one.open()
    one.ask_all()
    assert page.locator("#prompt").input_value() == "quiet river bridge"
    assert one.answer("demo") == "quiet river bridge"
    assert one.answer("snake") == "quiet_river_bridge"
    assert one.answer("title") == "Quiet River Bridge"
    facts = page.get_by_role("article", name="Answer of snake", exact=True).locator("dl").inner_text()
    assert re.match(r"First token\s*[\d.]+ m?s\s", facts), facts
    assert re.search(r"\sTokens\s*6\s*Ended\s*at its end\s*By\s*snake@1$", facts), facts
    page.get_by_role("button", name="Show the title of films").click()
    page.get_by_role("article", name="Answer of sql").locator("dl").get_by_text("at its end").wait_for()
    assert one.answer("sql") == "SELECT title FROM films WHERE length > 120;"
    page.get_by_text("sql@1").last.wait_for()  # what the route has chosen


def test_the_keyboard_is_enough(visit: Any) -> None:
    one = visit()
    page = one.open()
    page.locator("#pick").focus()
    page.keyboard.type("rev")
    page.get_by_role("option", name="reverse").wait_for()
    page.keyboard.press("Enter")
    page.keyboard.type("zzz")
    page.get_by_text("There is nothing of this name").wait_for()
    page.keyboard.press("Escape")
    page.locator("#pick[aria-expanded=false]").wait_for()
    page.locator("#prompt").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("green river")
    page.keyboard.press("Control+Enter")
    page.get_by_role("article", name="Answer of reverse").locator("dl").get_by_text("at its end").wait_for()
    one.wait_for_answers()
    assert one.answer("snake") == "green_river"
    page.get_by_role("tab", name="Compare").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_role("tab", name="Adapters", selected=True).wait_for()
    page.keyboard.press("End")
    page.wait_for_url("**/#charts")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # the focus is seen


def answer_slowly(route: Any) -> None:
    """Let a request through when more than a pause of somebody who types has gone by."""
    answer = route.fetch()
    time.sleep(0.2)
    route.fulfill(response=answer)


def test_enter_takes_what_was_typed_last(visit: Any) -> None:
    """However fast it was typed: not what was found for a text before it."""
    page = visit().open()
    page.locator("#pick").focus()
    page.get_by_role("option", name="dates").wait_for()
    page.route("**/v1/adapters?name_prefix=*", answer_slowly)
    for name in ("numbers", "json"):
        page.keyboard.type(name[:3])
        page.keyboard.press("Enter")
        page.get_by_role("article", name=f"Answer of {name}").wait_for()
        page.locator("#pick[aria-expanded=false]").wait_for()
        assert page.locator("#pick").input_value() == ""


def test_a_speed_is_said_of_what_came_one_after_the_other(visit: Any) -> None:
    script = """async (pieces) => {
      const { ask } = await import("/ui/playground/ask.js");
      const chunk = (tokens) => "data: " + JSON.stringify({
        choices: [{ text: "x" }], usage: { completion_tokens: tokens } }) + "\\n\\n";
      const events = pieces.map((piece) => piece.map(chunk).join(""));
      const body = new ReadableStream({ async start(stream) {
        for (const event of events) {
          stream.enqueue(new TextEncoder().encode(event));
          await new Promise((done) => setTimeout(done, 30));
        }
        stream.enqueue(new TextEncoder().encode("data: [DONE]\\n\\n"));
        stream.close();
      } });
      window.fetch = async () => new Response(body, { headers: { "content-type": "text/event-stream" } });
      const on = { text() {}, reasoning() {} };
      return ask({ kind: "base", name: "demo" }, { seed: null }, new AbortController().signal, on);
    }"""
    page = visit().open()
    together = page.evaluate(script, [[1, 2, 3, 4]])
    assert (together["tokens"], together["perSecond"]) == (4, None)
    apart = page.evaluate(script, [[1, 2, 3], [4], [5, 6]])
    assert apart["tokens"] == 6
    assert 0 < apart["perSecond"] < 3 / 0.055  # three behind the first three, in at least two pauses


def test_a_mixture_follows_its_sliders(visit: Any) -> None:
    one = visit()
    page = one.open()
    page.get_by_role("button", name="Take title away").click()
    page.get_by_role("button", name="Add a mixture").click()
    mixture = page.get_by_role("article", name="Answer of Mixture")
    for name, weight in (("snake", "1"), ("reverse", "0")):
        mixture.get_by_role("spinbutton", name=f"Weight of {name}").fill(weight)
    one.ask_all()
    assert one.answer("Mixture") == "quiet_river_bridge"
    with page.expect_request("**/v1/chat/completions") as asked:
        slider = mixture.get_by_role("slider", name="Weight of snake")
        slider.focus()
        page.keyboard.press("Home")
    members = asked.value.post_data_json["adapters"]
    assert members == [{"name": "snake", "weight": -1}, {"name": "reverse", "weight": 0}]
    mixture.get_by_text("snake@1").wait_for()


def test_an_answer_can_be_stopped_and_a_refusal_is_shown(visit: Any, demo: Any) -> None:
    one = visit()
    page = one.open()
    page.locator("#mode").get_by_text("Completion").click()
    page.locator("#max-tokens").fill("10000")
    page.get_by_role("button", name="Ask all").click()
    page.get_by_role("article", name="Answer of demo").get_by_text("maximum context length").wait_for()
    page.locator("#max-tokens").fill("400")
    page.locator("#temperature").fill("1.5")
    page.locator("#seed").fill("7")
    page.get_by_role("button", name="Ask all").click()
    page.locator(".answer[data-state=running]").first.wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("stopped by you").first.wait_for()
    page.get_by_role("button", name="Stop", disabled=True).wait_for()
    demo.wait_for_metric("peftserve_sequences_running", 0)


def test_a_key_is_asked_for(visit: Any) -> None:
    one = visit(key="")
    page = one.page
    page.goto(f"{one.server.url}/ui/")
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_text("asks for an API key").wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("needs a key").wait_for()
    page.get_by_role("button", name="Key").click()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    dialog.get_by_text("does not know this key").wait_for()
    page.keyboard.type("key-of-the-tests")
    page.keyboard.press("Enter")
    page.get_by_text("demo on cpu").wait_for()
    one.ask_all()
    assert one.answer("snake") == "quiet_river_bridge"


def test_light_and_dark(visit: Any) -> None:
    one = visit(color_scheme="dark")
    page = one.open()
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    assert dark != light
    button = page.locator("#theme")
    for theme, colour in (("light", light), ("dark", dark)):
        button.click()
        assert (page.locator("html").get_attribute("data-theme"), page.evaluate(ground)) == (theme, colour)
    one.open()
    assert page.evaluate(ground) == dark  # it is kept


def test_a_phone_has_all_of_it(visit: Any) -> None:
    one = visit(viewport={"width": 360, "height": 740})
    page = one.open()
    for part in ("compare", "adapters", "routes", "charts"):
        page.locator(f"#tab-{part}").click()
        page.locator(f"#{part}").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, part
