/* The table of adapters: searched and paged by the server, so that thousands are no more work than ten; always fresh. */
import { call } from "../api.js";
import { $, debounced, isSeen, whileBusy } from "../dom.js";
import { onShown } from "../tabs.js";
import { showFailure } from "../toasts.js";
import { makeActions } from "./actions.js";
import { Row } from "./row.js";
import { startUploads } from "./uploads.js";
import { Watch } from "./watch.js";

const PAGE = 50;
const REFRESH_SECONDS = 3; // requests that run are in no event
const FILTERS = { "search": "name_prefix", "state-filter": "state", "method-filter": "method", "tag-filter": "tag" };

const rows = new Map(); // from a name to its Row
let shown = { filters: "", cursors: [""] }; // what the rows answer; cursors: the last name before each page so far
let wanted = shown.cursors; // of the page that is asked for, and that the rows come to once it is answered
let hasMore = false; // pages behind the one that is shown
let asked = 0; // answers to older questions are dropped
let actions = null;

/** Start the table. server: what `/v1/server` says. */
export function startAdapters(server) {
  const freshen = () => refresh().catch(showFailure);
  actions = makeActions(server, freshen);
  startUploads({ limit: server.upload_limit, onAdded: freshen });
  for (const id of Object.keys(FILTERS)) $(id).addEventListener("input", debounced(freshen, 180));
  $("page-back").addEventListener("click", () => turn($("page-back"), shown.cursors.slice(0, -1)));
  $("page-on").addEventListener("click", () => turn($("page-on"), [...shown.cursors, [...rows.keys()].at(-1)]));
  $("default-base").addEventListener("click", () => actions.setDefault(null));
  follow(freshen);
}

/** Ask anew when the part is shown, when something happens, and now and then; not while nobody looks. */
function follow(freshen) {
  const section = $("adapters");
  const quietly = () => isSeen(section) && refresh({ quiet: true }).catch(() => {});
  const watch = new Watch(debounced(quietly, 150));
  const look = () => (isSeen(section) ? watch.start() : watch.stop());
  onShown("adapters", freshen);
  document.addEventListener("visibilitychange", look);
  new MutationObserver(look).observe(section, { attributeFilter: ["hidden"] });
  setInterval(quietly, REFRESH_SECONDS * 1000);
  look();
  if (isSeen(section)) freshen();
}

/** Go to another page; where the server does not answer, the one that is shown stays, and the focus with it. */
async function turn(button, cursors) {
  const isDone = await whileBusy(button, () => refresh({ cursors }).then(() => true, showFailure));
  drawPager(); // a button that is no longer busy may still lead nowhere
  if (isDone) $("rows").querySelector("button")?.focus();
}

function filtersNow() {
  const filters = Object.fromEntries(Object.entries(FILTERS).map(([id, name]) => [name, $(id).value.trim()]));
  return { ...filters, method: filters.method.toUpperCase() };
}

/** Ask for a page and draw it. cursors: those of the page, which is the first where the filters are others by now. */
async function refresh({ quiet = false, cursors = wanted } = {}) {
  const mine = (asked += 1);
  const filters = filtersNow();
  const asking = { filters: JSON.stringify(filters), cursors };
  if (asking.filters !== shown.filters) asking.cursors = [""];
  wanted = asking.cursors;
  const query = { ...filters, limit: PAGE, after: wanted.at(-1) };
  const answers = Promise.all([call("v1/adapters", { query, quiet }), call("v1/default-adapter", { quiet })]);
  const [list, byDefault] = await answers.catch((failure) => {
    if (mine === asked) wanted = shown.cursors;
    throw failure;
  });
  if (mine !== asked) return;
  shown = asking;
  hasMore = list.has_more;
  $("default-name").textContent = byDefault.adapter ?? "the base";
  $("default-base").hidden = byDefault.adapter === null;
  draw(list.data, byDefault.adapter);
}

function draw(data, byDefault) {
  const names = new Set(data.map((card) => card.name));
  for (const [name, row] of rows) {
    if (names.has(name)) continue;
    row.elements.forEach((element) => element.remove());
    rows.delete(name);
  }
  const before = new Map(rows);
  rows.clear(); // and filled again in the order of the list
  data.forEach((card, at) => {
    const row = before.get(card.name) ?? new Row(card, actions);
    rows.set(card.name, row);
    row.update(card, byDefault === card.name || byDefault === `${card.name}@${card.version}`);
    place(row, at);
  });
  drawPager();
}

/** Put a row at its place; one that is there already is not moved, and keeps the focus. */
function place(row, at) {
  const there = $("rows").children[2 * at];
  if (there !== row.elements[0]) $("rows").insertBefore(row.elements[0], there ?? null).after(row.elements[1]);
}

function drawPager() {
  const filtered = Object.keys(FILTERS).some((id) => $(id).value.trim());
  const names = [...rows.keys()];
  $("adapters-empty").hidden = names.length > 0;
  $("adapters-empty").textContent = filtered ? "No adapter is like this." : "There are no adapters yet: drop one above.";
  $("page-back").disabled = shown.cursors.length === 1;
  $("page-on").disabled = !hasMore;
  $("page-text").textContent = names.length ? `Page ${shown.cursors.length}: ${names[0]} to ${names.at(-1)}` : "";
}
