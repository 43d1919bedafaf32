/* One adapter's row, kept while its card changes, so that nothing under the pointer or the focus is lost. */
import { el } from "../dom.js";
import { ago, bytes, when } from "../format.js";
import { compareWith } from "../playground/view.js";
import { adapterTarget } from "../playground/targets.js";
import { Detail } from "./detail.js";

/** A row and what unfolds below it. elements: both, in order. */
export class Row {
  constructor(card, actions) {
    this.#actions = actions;
    const toggle = () => this.toggle();
    this.#unfold = el("button.unfold", { type: "button", onclick: toggle, aria: { expanded: "false" } }, card.name);
    this.#row = el("tr.row", { data: { name: card.name } });
    this.#detail = el("tr.detail", { hidden: true }, el("td", { colSpan: 9 }));
    this.elements = [this.#row, this.#detail];
    this.#cells = {
      name: el("td.name-cell", {}, el("div.name", {}, this.#unfold, this.#marks)),
      method: labelled("Method"),
      rank: labelled("Rank", "number"),
      size: labelled("Size", "number"),
      state: labelled("State"),
      version: labelled("Version", "number"),
      running: labelled("Running", "number"),
      created: labelled("Created", "created"),
      use: el("td.use", {}, el("button", { type: "button", onclick: () => compareWith(adapterTarget(this.#card)), aria: { label: `Compare ${card.name}` } }, "Compare")),
    };
    this.#row.append(...Object.values(this.#cells));
    this.update(card, null);
  }

  #actions;
  #card;
  #cells;
  #unfold;
  #row;
  #detail;
  #opened = null; // the Detail, once it was asked for
  #marks = el("span.marks");

  /** Show a newer card. isDefault: whether the adapter answers by default. */
  update(card, isDefault) {
    const before = this.#card;
    this.#card = card;
    const cells = this.#cells;
    cells.method.textContent = card.method;
    cells.rank.textContent = card.rank || "–";
    cells.size.textContent = bytes(card.size);
    cells.state.replaceChildren(el("span.state", {}, el("span.dot", { data: { state: card.state } }), card.state));
    cells.version.textContent = card.version;
    cells.running.textContent = card.requests_running;
    cells.created.textContent = ago(card.created);
    cells.created.title = when(card.created);
    this.#marks.replaceChildren(...marksOf(card, isDefault));
    const changed = before && JSON.stringify({ ...before, requests_running: 0 }) !== JSON.stringify({ ...card, requests_running: 0 });
    this.#opened?.update(card, isDefault, changed);
    this.#isDefault = isDefault;
  }

  #isDefault = null;

  /** Unfold what lies below, or fold it. */
  toggle() {
    const open = this.#detail.hidden;
    this.#detail.hidden = !open;
    this.#unfold.setAttribute("aria-expanded", String(open));
    if (!open) return;
    this.#opened ??= new Detail(this.#detail.firstChild, this.#actions);
    this.#opened.update(this.#card, this.#isDefault, true);
  }
}

function labelled(label, kind = "plain") {
  return el(`td.${kind}`, { data: { label } });
}

function marksOf(card, isDefault) {
  return [
    isDefault && el("span.tag.accent", {}, "default"),
    card.pinned && el("span.tag", {}, "pinned"),
    card.error && el("span.tag", { title: card.error }, "damaged"),
    ...(card.tags ?? []).map((tag) => el("span.tag", {}, tag)),
  ].filter(Boolean);
}
