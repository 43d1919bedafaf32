/* The table of adapters: searched and paged by the server, so that thousands are no more work than ten; always fresh. */
import { call } from "../api.js";
import { $, debounced, isSeen } from "../dom.js";
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
let cursors = [""]; // the last name before each page so far; the last of them is of the page that is shown
let asked = 0; // answers to older questions are dropped
let actions = null;

/** Start the table. server: what `/v1/server` says. */
export function startAdapters(server) {
  const freshen = () => refresh().catch(showFailure);
  actions = makeActions(server, freshen);
  startUploads({ limit: server.upload_limit, onAdded: freshen });
  for (const id of Object.keys(FILTERS)) $(id).addEventListener("input", debounced(search, 180));
  $("page-back").addEventListener("click", () => turn(() => cursors.pop()));
  $("page-on").addEventListener("click", () => turn(() => cursors.push([...rows.keys()].at(-1))));
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

function search() {
  cursors = [""];
  refresh().catch(showFailure);
}

async function turn(move) {
  move();
  await refresh().catch(showFailure);
  $("rows").querySelector("button")?.focus();
}

function wanted() {
  const query = Object.fromEntries(Object.entries(FILTERS).map(([id, name]) => [name, $(id).value.trim()]));
  return { ...query, method: query.method.toUpperCase(), limit: PAGE, after: cursors.at(-1) };
}

async function refresh({ quiet = false } = {}) {
  const mine = (asked += 1);
  const [list, byDefault] = await Promise.all([
    call("v1/adapters", { query: wanted(), quiet }),
    call("v1/default-adapter", { quiet }),
  ]);
  if (mine !== asked) return;
  $("default-name").textContent = byDefault.adapter ?? "the base";
  $("default-base").hidden = byDefault.adapter === null;
  draw(list, byDefault.adapter);
}

function draw({ data, has_more: hasMore }, byDefault) {
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
  drawPager(data, hasMore);
}

/** Put a row at its place; one that is there already is not moved, and keeps the focus. */
function place(row, at) {
  const there = $("rows").children[2 * at];
  if (there !== row.elements[0]) $("rows").insertBefore(row.elements[0], there ?? null).after(row.elements[1]);
}

function drawPager(data, hasMore) {
  const filtered = Object.keys(FILTERS).some((id) => $(id).value.trim());
  $("adapters-empty").hidden = data.length > 0;
  $("adapters-empty").textContent = filtered ? "No adapter is like this." : "There are no adapters yet: drop one above.";
  $("page-back").disabled = cursors.length === 1;
  $("page-on").disabled = !hasMore;
  $("page-text").textContent = data.length ? `Page ${cursors.length}: ${data[0].name} to ${data.at(-1).name}` : "";
}
