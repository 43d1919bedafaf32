"""The page's routes and charts in Chromium, and the parts of its scripts that compute something."""

import functools
import io
import json
import random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

pytestmark = pytest.mark.slow


def test_routes_are_made_explained_changed_and_deleted(visit: Any, demo: Any) -> None:
    one = visit()
    page = one.open("routes")
    editor = page.locator(".editor")
    body = page.get_by_role("textbox", name="Body of the route")
    page.get_by_role("button", name="auto match").wait_for()
    page.get_by_role("button", name="New route").click()
    page.keyboard.type("spring")
    page.get_by_role("button", name="split").click()
    body.fill('{"kind": ')
    page.keyboard.press("Control+Enter")
    editor.get_by_text("This is not JSON").wait_for()
    assert body.get_attribute("aria-invalid") == "true"
    body.fill('{"kind": "alias", "target": "nobody"}')
    page.get_by_role("button", name="Create").click()
    editor.locator(".error").filter(has_text="nobody").wait_for()
    body.fill('{"kind": "alias", "target": "sql"}')
    page.get_by_role("button", name="Create").click()
    page.get_by_role("button", name="spring alias · sql").wait_for()
    page.get_by_role("textbox", name="Prompt to explain").fill("a")
    page.keyboard.press("Enter")
    page.get_by_role("status").filter(has_text="Chooses sql@1").wait_for()
    body.fill('{"kind": "mixture", "adapters": [{"name": "snake", "weight": 1}]}')
    page.get_by_role("button", name="Save as the next version").click()
    page.get_by_text("spring, version 2").wait_for()
    editor.get_by_role("button", name="Compare").click()
    one.ask_all()
    assert one.answer("spring") == "quiet_river_bridge"
    page.get_by_role("tab", name="Routes").click()
    editor.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="spring").wait_for(state="detached")
    assert demo.client.get("/v1/routes/spring").status_code == 404


def test_charts_show_what_the_server_does(visit: Any, demo: Any) -> None:
    one = visit()
    page = one.open("charts")
    throughput = page.get_by_role("img", name="Throughput")
    throughput.wait_for()
    body = {"model": "sql", "prompt": "a", "max_tokens": 200, "ignore_eos": True}
    assert demo.client.post("/v1/completions", json=body).status_code == 200
    page.locator(".chart", has_text="Time to the first token").locator(".now small").filter(has_text="s").wait_for()
    page.get_by_role("img", name="Adapters on the device: adapters").wait_for()
    throughput.focus()
    page.keyboard.press("ArrowLeft")
    page.locator(".chart", has_text="Throughput").get_by_text("s ago").wait_for()


def test_metrics_that_are_for_others_are_no_server_that_is_away(visit: Any) -> None:
    """As with a key for metrics alone, or behind a proxy that lets nobody at them."""
    one = visit()
    page = one.open("charts")
    words = {"error": {"message": "Not with this key."}}
    refusal, banner = page.locator("#charts-refusal"), page.locator("#banner")
    for status, body, said in ((401, json.dumps(words), "Not with this key."), (403, "Forbidden", "status 403")):
        page.unroute("**/metrics")
        page.route("**/metrics", functools.partial(answer, status=status, body=body))
        refusal.filter(has_text=said).wait_for()
        assert (page.locator("#server-text").inner_text(), banner.is_hidden()) == ("demo on cpu", True)
    for failing in (functools.partial(answer, status=502, body=""), lambda route: route.abort()):
        page.unroute("**/metrics")
        page.route("**/metrics", failing)
        banner.filter(has_text="does not answer").wait_for()
        page.unroute("**/metrics")
        page.get_by_text("demo on cpu").wait_for()
        assert (refusal.is_hidden(), banner.is_hidden()) == (True, True)
    one.faults[:] = [fault for fault in one.faults if "Failed to load resource" not in fault]


def answer(route: Any, status: int, body: str) -> None:
    route.fulfill(status=status, body=body)


def test_the_metrics_are_read_as_prometheus_reads_them(visit: Any) -> None:
    registry = CollectorRegistry()
    counter = Counter("tokens", 'with "quotes"', ["adapter"], registry=registry)
    names = ['a"b', "back\\slash", "line\nbreak", "plain}"]
    for many, name in enumerate(names, 1):
        counter.labels(name).inc(many)
    histogram = Histogram("seconds", "of something", registry=registry, buckets=(0.1, 0.2, 0.5, 1.0))
    draw = random.Random(3)
    for _ in range(400):
        histogram.observe(draw.uniform(0, 1))
    page = visit().open()
    script = """async (text) => {
      const { parse, total, buckets, quantile } =
        await import("/ui/charts/prometheus.js");
      const found = parse(text);
      const all = buckets(found, "seconds");
      return {
        names: found.get("tokens_total").map(({ labels }) => labels.adapter),
        sum: total(found, "tokens_total"), one: total(found, "tokens_total", { adapter: "plain}" }),
        median: quantile(0.5, all, new Map()), none: quantile(0.5, all, all),
      };
    }"""
    said = page.evaluate(script, generate_latest(registry).decode())
    assert (said["names"], said["sum"], said["one"], said["none"]) == (names, 10, 4, None)
    assert said["median"] == pytest.approx(0.5, abs=0.05)


def test_events_are_read_however_they_are_cut(visit: Any) -> None:
    text = 'event: a\r\ndata: {"x":\r\ndata: "é"}\r\n\r\n: comment\n\ndata:1\n\n'
    text += "id: 7\rdata: two\r\rdata: [DONE]\n\ndata: cut"
    page = visit().open()
    script = """async ([bytes, size]) => {
      const { eventsOf } = await import("/ui/sse.js");
      const body = new ReadableStream({ start(stream) {
        for (let at = 0; at < bytes.length; at += size) stream.enqueue(new Uint8Array(bytes.slice(at, at + size)));
        stream.close();
      } });
      const seen = [];
      for await (const { event, data, id } of eventsOf({ body })) seen.push([event, data, id]);
      return seen;
    }"""
    expected = [
        ["a", '{"x":\n"é"}', ""],
        ["message", "1", ""],
        ["message", "two", "7"],
        ["message", "[DONE]", ""],
    ]
    for size in (1, 2, 3, 7, io.DEFAULT_BUFFER_SIZE):
        assert page.evaluate(script, [list(text.encode()), size]) == expected, size


def test_folders_are_told_from_what_lies_beside(visit: Any) -> None:
    page = visit().open()
    script = """async (paths) => {
      const { adaptersOf } = await import("/ui/adapters/folders.js");
      const found = adaptersOf(paths.map((path) => ({ path, file: null })));
      const sent = ({ files }) => files.map(({ path }) => path);
      return found.map((one) => [one.name, sent(one), one.skipped, one.fault !== ""]);
    }"""
    config, weights = "adapter_config.json", "adapter_model.safetensors"
    two = [f"top/{name}/{file}" for name in ("b b", "a") for file in (config, weights)]
    assert page.evaluate(script, [*two, "top/notes.txt"]) == [
        ["a", [config, weights], [], False],
        ["b-b", [config, weights], [], False],
    ]
    experts = [config, weights, f"expert/{config}", f"expert/{weights}", "tokenizer.json", "optimizer.pt"]
    assert page.evaluate(script, [f"x/{path}" for path in experts]) == [["x", experts[:-1], ["optimizer.pt"], False]]
    assert page.evaluate(script, [config, weights]) == [["", [config, weights], [], False]]
    assert page.evaluate(script, ["x/notes.txt"]) == [["x", [], ["notes.txt"], True]]
