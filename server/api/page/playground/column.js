/* One answer of several: who answers, the text as it comes, and how fast it came. */
import { el } from "../dom.js";
import { duration, short } from "../format.js";
import { ask } from "./ask.js";
import { mixtureEditor } from "./mixture.js";

const ENDED = { stop: "at its end", length: "at the limit", abort: "stopped" };

/** A column with its target. onRemove: called when the user takes it away. onMixed: when a mixture has changed. */
export class Column {
  constructor(target, { onRemove, onMixed }) {
    this.target = target;
    this.#text = el("p.text", { data: { empty: "No answer yet" } });
    const close = { type: "button", onclick: () => onRemove(this), aria: { label: `Take ${target.name} away` } };
    const head = el("header", {}, el("h3", { title: target.name }, target.name), this.#tag(), el("button.quiet.close", close, "×"));
    const mixing = target.kind === "mixture" ? mixtureEditor(target.members, () => onMixed(this)) : null;
    this.element = el("article.card.answer", { data: { kind: target.kind, state: "idle" }, aria: { label: `Answer of ${target.name}` } },
      head, mixing, this.#reasoning, this.#text, this.#error, this.#facts);
  }

  #text;
  #reasoning = el("p.reasoning", { aria: { label: "Reasoning" } });
  #error = el("p.error", { attrs: { role: "alert" } });
  #facts = el("dl");
  #run = null;

  /** Ask the target, and show what comes of it. Ends what it was asked before. Never raises. */
  async ask(question, signal) {
    this.#run?.abort();
    const run = (this.#run = new AbortController());
    this.#clear();
    try {
      const both = AbortSignal.any([signal, run.signal]);
      const seen = await ask(this.target, question, both, {
        text: (piece) => this.#text.append(piece),
        reasoning: (piece) => this.#reasoning.append(piece),
      });
      this.#finish(seen);
    } catch (failure) {
      if (run === this.#run) this.#fail(failure);
    }
  }

  /** End what it was asked. */
  stop() {
    this.#run?.abort();
  }

  #tag() {
    const { kind, note } = this.target;
    return el(`span.tag${kind === "base" ? ".accent" : ""}`, {}, kind === "adapter" ? (note ?? kind) : kind);
  }

  #clear() {
    for (const part of [this.#text, this.#reasoning, this.#error, this.#facts]) part.replaceChildren();
    this.#text.dataset.empty = "";
    this.#set("running");
  }

  #finish({ by, tokens, firstToken, perSecond, finish }) {
    this.#text.dataset.empty = "An empty answer";
    this.#set("done");
    this.#say("First token", firstToken === null ? null : duration(firstToken));
    this.#say("Tokens/s", perSecond === null ? null : short(perSecond));
    this.#say("Tokens", String(tokens));
    this.#say("Ended", ENDED[finish] ?? finish);
    this.#say("By", by.replaceAll("*", " × ").replaceAll("+", " + "));
  }

  #fail(failure) {
    const stopped = failure.name === "AbortError";
    this.#text.dataset.empty = stopped ? "Stopped" : "";
    this.#set(stopped ? "stopped" : "failed");
    if (stopped) this.#say("Ended", "stopped by you");
    else this.#error.append(failure.message);
  }

  #set(state) {
    this.element.dataset.state = state;
    this.element.setAttribute("aria-busy", String(state === "running"));
  }

  #say(name, value) {
    if (value) this.#facts.append(el("div", {}, el("dt", {}, name), el("dd", {}, value)));
  }
}
