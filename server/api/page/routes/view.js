/* The routes: a list, and the body of one to read and change. The server checks it; its words are shown as they come. */
import { call, pathOf } from "../api.js";
import { confirmed } from "../dialog.js";
import { $, el, isSeen, whileBusy } from "../dom.js";
import { compareWith } from "../playground/view.js";
import { routeTarget } from "../playground/targets.js";
import { onShown } from "../tabs.js";
import { attempt, showFailure, toast } from "../toasts.js";
import { TEMPLATES, bodyOf, read, targetsOf, written } from "./bodies.js";
import { explainer } from "./explain.js";

const MOST = 500;
const NAMES = ["a", "b"];
let names = NAMES; // of two adapters, for templates
let open = null; // the name of the route in the editor; null for a new one

/** Start the part. */
export function startRoutes() {
  const refresh = () => list().catch(showFailure);
  $("route-new").addEventListener("click", () => edit(null));
  onShown("routes", refresh);
  edit(null, false);
  if (isSeen($("routes"))) refresh();
}

async function list() {
  const [{ data }, adapters] = await Promise.all([
    call("v1/routes", { query: { limit: MOST } }),
    call("v1/adapters", { query: { limit: 2 } }),
  ]);
  const isFirst = names === NAMES;
  names = [...adapters.data.map((card) => card.name), ...NAMES].slice(0, 2);
  if (isFirst && open === null && !$("route-editor").contains(document.activeElement)) edit(null, false);
  $("route-list").replaceChildren(...data.map(item));
  $("routes-empty").hidden = data.length > 0;
}

function item(card) {
  const targets = targetsOf(card);
  const words = `${card.kind} · ${targets.slice(0, 6).join(", ")}${targets.length > 6 ? ", …" : ""}`;
  const button = el("button", { type: "button", onclick: () => edit(card), data: { name: card.name }, aria: { current: String(card.name === open) } },
    el("span", {}, card.name), el("small", {}, words));
  return el("li", {}, button);
}

/** Show a route in the editor, or a new one. */
function edit(card, focus = true) {
  open = card?.name ?? null;
  for (const button of $("route-list").querySelectorAll("button")) button.setAttribute("aria-current", String(button.dataset.name === open));
  const editor = new Editor(card);
  $("route-editor").replaceChildren(...editor.elements);
  if (focus) editor.focus();
}

/** The form of one route. card: null for a new one. */
class Editor {
  constructor(card) {
    this.#card = card;
    this.#name = el("input", { value: card?.name ?? "", required: true, readOnly: card !== null, maxLength: 128, placeholder: "support", spellcheck: false });
    const body = card ? bodyOf(card) : TEMPLATES.alias(names);
    this.#body = el("textarea.code", { value: written(body), spellcheck: false, rows: 14, aria: { label: "Body of the route, as JSON" } });
    this.#save = el("button.primary", { type: "submit" }, card ? "Save as the next version" : "Create");
    const actions = el("div.actions", {}, this.#save, card && this.#button("Compare", () => compareWith(routeTarget(card))),
      card && this.#button("Delete", () => attempt(() => this.#delete()), "danger"));
    const head = el("h2", {}, card ? `${card.name}, version ${card.version}` : "A new route");
    const form = el("form.editor", { onsubmit: (event) => this.#submit(event) }, head,
      el("label.field.wide", {}, "Name", this.#name), card === null && this.#templates(), this.#body, this.#error, actions);
    this.elements = card ? [form, explainer(card.name)] : [form];
    this.#body.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
  }

  #card;
  #name;
  #body;
  #save;
  #error = el("p.error", { attrs: { role: "alert" } });

  focus() {
    (this.#card ? this.#body : this.#name).focus();
    this.#body.setSelectionRange(0, 0);
    this.#body.scrollTop = 0;
  }

  #button(text, work, kind = "plain") {
    return el(`button.${kind}`, { type: "button", onclick: work }, text);
  }

  #templates() {
    const use = (kind) => () => {
      this.#body.value = written(TEMPLATES[kind](names));
      this.#body.focus();
    };
    const buttons = Object.keys(TEMPLATES).map((kind) => this.#button(kind, use(kind)));
    return el("div.templates", { attrs: { role: "group" }, aria: { label: "Begin with a kind" } }, el("span.label", {}, "Begin with"), buttons);
  }

  async #submit(event) {
    event.preventDefault();
    this.#error.textContent = "";
    this.#body.removeAttribute("aria-invalid");
    try {
      const body = read(this.#body.value);
      const card = await whileBusy(this.#save, () => call(pathOf("routes", this.#name.value.trim()), { method: "PUT", body }));
      toast(`${card.name} is version ${card.version}`);
      edit(card);
      await list();
    } catch (failure) {
      this.#body.setAttribute("aria-invalid", "true");
      this.#error.textContent = failure.message;
    }
  }

  async #delete() {
    const { name } = this.#card;
    if (!(await confirmed(`Delete ${name}?`, "Requests that name it get a 404 from then on.", "Delete"))) return;
    try {
      await call(pathOf("routes", name), { method: "DELETE" });
    } catch (failure) {
      if (failure.status !== 409 || !(await confirmed(`Delete ${name} all the same?`, failure.message, "Delete anyway"))) throw failure;
      await call(pathOf("routes", name), { method: "DELETE", query: { force: true } });
    }
    toast(`${name} is deleted`);
    edit(null);
    await list();
  }
}
