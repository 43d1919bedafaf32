/* What unfolds below a row: facts, what can be done with the adapter, and its versions. */
import { call, pathOf } from "../api.js";
import { el, whileBusy } from "../dom.js";
import { bytes, when } from "../format.js";
import { showFailure } from "../toasts.js";

/** The open part of a row. place: the cell. actions: what `actions.js` offers. */
export class Detail {
  constructor(place, actions) {
    this.#actions = actions;
    place.append(this.#facts, this.#buttons, this.#versions);
  }

  #actions;
  #facts = el("dl.facts");
  #buttons = el("div.actions");
  #versions = el("ul.versions", { aria: { label: "Versions" }, hidden: true });
  #drawn = "";

  /** Show a card. changed: whether versions may have come or gone. */
  update(card, isDefault, changed) {
    this.#facts.replaceChildren(...factsOf(card));
    const drawn = JSON.stringify([card.name, isDefault, card.pinned, card.state]);
    if (drawn !== this.#drawn) this.#drawButtons(card, isDefault);
    this.#drawn = drawn;
    if (changed) this.#load(card).catch(showFailure);
  }

  #drawButtons(card, isDefault) {
    const { setDefault, load, pin, remove } = this.#actions;
    this.#buttons.replaceChildren(
      this.#button(isDefault ? "Default no more" : "Make default", () => setDefault(isDefault ? null : card.name)),
      this.#button("Load to the device", () => load(card.name), card.state === "device"),
      this.#button(card.pinned ? "Unpin" : "Pin to the device", () => pin(card.name, !card.pinned)),
      this.#button("Delete", () => remove(card.name), false, "danger"),
    );
  }

  #button(text, work, disabled = false, kind = "plain") {
    const button = el(`button.${kind}`, { type: "button", disabled }, text);
    button.addEventListener("click", () => whileBusy(button, work));
    return button;
  }

  async #load(card) {
    const { data } = await call(pathOf("adapters", card.name, "/versions"), { quiet: true });
    this.#versions.hidden = data.length < 2;
    this.#versions.replaceChildren(...data.map((version, at) => this.#version(version, at === 0)));
  }

  #version(card, isNewest) {
    const { rollBack, setDefault, remove } = this.#actions;
    const named = `${card.name}@${card.version}`;
    const words = `${card.method}${card.rank ? ` r${card.rank}` : ""}, ${bytes(card.size)}, ${card.state}, ${when(card.created)}`;
    const buttons = isNewest
      ? [el("span.tag.accent", {}, "newest")]
      : [
          this.#button("Make it the newest", () => rollBack(card.name, card.version)),
          this.#button("Make default", () => setDefault(named)),
          this.#button("Delete", () => remove(named), false, "danger"),
        ];
    return el("li", {}, el("strong", {}, named), el("span.hint", {}, words), buttons);
  }
}

function factsOf(card) {
  const facts = [
    ["Changes", `${card.modules} modules (${Object.entries(card.primitives).map(([kind, many]) => `${many} ${kind.replaceAll("_", " ")}`).join(", ")})`],
    ["Tensors", card.tensors],
    ["Takes of the context", card.virtual_tokens && `${card.virtual_tokens} tokens`],
    ["From", card.origin && (card.origin.uri ?? JSON.stringify(card.origin))],
    ["Ends", card.expires_at && when(card.expires_at)],
    ["Notes", card.metadata && JSON.stringify(card.metadata)],
    ["Damaged", card.error],
    ["Digest", card.digest.slice(0, 16)],
  ];
  return facts.filter(([, value]) => value).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value))));
}
