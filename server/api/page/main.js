/* The beginning: ask the server what it is, start the parts, and say how it goes. */
import { startAdapters } from "./adapters/view.js";
import { call } from "./api.js";
import { startCharts } from "./charts/view.js";
import { $ } from "./dom.js";
import { changeKey } from "./keys.js";
import { startPlayground } from "./playground/view.js";
import { startRoutes } from "./routes/view.js";
import { startTabs } from "./tabs.js";

const RETRY_SECONDS = 1;

/** Wait for the server and return what it says of itself. */
async function connect() {
  for (;;) {
    try {
      return await call("v1/server");
    } catch (failure) {
      if (failure.status === 401) return waitForKey();
      showState("wait", failure.status === 503 ? "loading" : "not reachable");
      showBanner(failure.status === 503 ? failure.message : `${failure.message} Trying again.`, failure.status === 503 ? "wait" : "error");
      await new Promise((resolve) => setTimeout(resolve, RETRY_SECONDS * 1000));
    }
  }
}

/** Wait until the user gives a key after all, by the button at the top. Returns what `connect` does. */
async function waitForKey() {
  showState("wait", "needs a key");
  showBanner("This server shows its adapters to those who have a key: press Key, at the top.", "wait");
  do {
    await new Promise((resolve) => $("key").addEventListener("click", resolve, { once: true }));
  } while (!(await changeKey()));
  return connect();
}

function showState(state, text) {
  document.querySelector("#server .dot").dataset.state = state;
  $("server-text").textContent = text;
}

function showBanner(text, kind) {
  $("banner").hidden = !text;
  $("banner").textContent = text;
  $("banner").dataset.kind = kind;
}

function showHealth(server, isWell) {
  showState(isWell ? "up" : "down", isWell ? `${server.id} on ${server.device}` : "not reachable");
  const standing = server.has_text ? "" : "This model has no tokenizer: it takes and gives token ids only, which this page does not.";
  showBanner(isWell ? standing : "The server does not answer. What is shown may be old.", "error");
}

async function start() {
  startTabs();
  const server = await connect();
  showHealth(server, true);
  $("server").title = `${server.architecture}, ${server.dtype}, ${server.max_model_len} tokens of context`;
  $("key").addEventListener("click", async () => {
    if (await changeKey()) location.reload();
  });
  startAdapters(server);
  startRoutes();
  startCharts((isWell) => showHealth(server, isWell));
  await startPlayground(server);
}

start();
