/* The playground: one prompt, asked of several adapters side by side. Knows columns; does not know how they are asked. */
import { $, el } from "../dom.js";
import { showTab } from "../tabs.js";
import { attempt, toast } from "../toasts.js";
import { Column } from "./column.js";
import { loadExamples } from "./examples.js";
import { combobox } from "./picker.js";
import { findAdapters, findTargets } from "./targets.js";

const MOST = 6; // browsers open no more connections to one server; a further column would only wait for them
const columns = [];
let base = "";
let running = null; // the AbortController of what is being asked
let touched = false; // whether the user has chosen who answers

/** Start the playground. server: what `/v1/server` says. */
export async function startPlayground(server) {
  base = server.id;
  if (!server.has_chat_template) document.querySelector('[name="mode"][value="completion"]').checked = true;
  showMode();
  listen();
  combobox($("pick"), $("pick-list"), (text) => findTargets(text, base), (target) => add(target, true));
  const { examples, first } = (await attempt(() => loadExamples(base))) ?? { examples: [], first: [] };
  $("examples").replaceChildren(...examples.map(exampleButton));
  if (examples.length && !$("prompt").value) $("prompt").value = examples[0].prompt;
  if (!columns.length) begin(examples.length ? examples[0].targets : first);
  $("ask-all").disabled = false;
}

/** Add an adapter to those that answer, and show the playground. */
export function compareWith(target) {
  if (add(target, true)) showTab("compare");
}

function listen() {
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    askAll();
  });
  $("stop").addEventListener("click", () => running?.abort());
  $("compare").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
    if (event.key === "Escape") running?.abort();
  });
  $("mode").addEventListener("change", showMode);
  $("add-mixture").addEventListener("click", () => attempt(addMixture));
}

const isChat = () => document.querySelector('[name="mode"]:checked').value === "chat";

function showMode() {
  $("system-field").hidden = !isChat();
}

function exampleButton({ prompt, targets }) {
  const use = () => {
    $("prompt").value = prompt;
    if (touched) targets.forEach((target) => columns.length < MOST && add(target));
    else begin(targets);
    askAll();
  };
  return el("button", { type: "button", onclick: use, title: "Ask this" }, prompt);
}

/** Put other columns in the place of all: the base, and these. */
function begin(targets) {
  [...columns].forEach(remove);
  [{ kind: "base", name: base, note: "base" }, ...targets].forEach((target) => add(target));
}

function add(target, byUser = false) {
  touched ||= byUser;
  if (target.kind !== "mixture" && columns.some((column) => column.target.name === target.name)) return true;
  if (columns.length >= MOST) {
    toast(`At most ${MOST} answer side by side: take one away first.`, { kind: "error" });
    return false;
  }
  const column = new Column(target, { onRemove: (one) => ((touched = true), remove(one)), onMixed: askAgain });
  columns.push(column);
  $("columns").append(column.element);
  drawChips();
  return true;
}

function remove(column) {
  column.stop();
  column.element.remove();
  columns.splice(columns.indexOf(column), 1);
  drawChips();
}

function drawChips() {
  const chip = (column) => {
    const close = { type: "button", onclick: () => ((touched = true), remove(column)), aria: { label: `Do not ask ${column.target.name}` } };
    return el("li", {}, el("span", {}, column.target.name), el("button.quiet.close", close, "×"));
  };
  $("chips").replaceChildren(...columns.map(chip));
}

/** Add a mixture of the adapters that answer now, or of the first two there are. */
async function addMixture() {
  const shown = columns.map((column) => column.target).filter(({ kind }) => kind === "adapter");
  const members = (shown.length ? shown : await findAdapters("")).slice(0, 2);
  add({ kind: "mixture", name: "Mixture", members: members.map(({ name }) => ({ name, weight: 0.5 })) }, true);
}

function question() {
  const seed = $("seed").value;
  return {
    chat: isChat(),
    prompt: $("prompt").value,
    system: $("system").value.trim(),
    temperature: Number($("temperature").value),
    maxTokens: Number($("max-tokens").value),
    seed: seed === "" ? null : Number(seed),
  };
}

async function askAll() {
  await askThem([...columns]);
}

/** Ask a column anew whose mixture has changed, if it has been asked at all. */
async function askAgain(column) {
  touched = true;
  if (column.element.dataset.state !== "idle" && column.target.members.length) await askThem([column], false);
}

async function askThem(these, anew = true) {
  if (!$("prompt").value.trim()) return $("prompt").focus();
  if (!$("ask").reportValidity()) return undefined;
  if (anew) running?.abort();
  const run = (running = anew || running === null ? new AbortController() : running);
  $("stop").disabled = false;
  const asked = question();
  await Promise.all(these.map((column) => column.ask(asked, run.signal)));
  if (run !== running || columns.some((column) => column.element.dataset.state === "running")) return undefined;
  running = null;
  $("stop").disabled = true;
  return undefined;
}
