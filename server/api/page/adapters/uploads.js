/* Uploads: what was dropped or picked, each with its name, its progress, and the server's reasons where it refuses. */
import { call } from "../api.js";
import { $, debounced, el } from "../dom.js";
import { bytes, plural } from "../format.js";
import { compareWith } from "../playground/view.js";
import { adapterTarget } from "../playground/targets.js";
import { attempt, toast } from "../toasts.js";
import { adaptersOf, filesOfDrop, filesOfInput } from "./folders.js";
import { upload } from "./transfer.js";

/** Start taking uploads. limit: most bytes of one. onAdded: called when an adapter has been added. */
export function startUploads({ limit, onAdded }) {
  const offer = (files) => {
    if (!files.length) return;
    const items = adaptersOf(files).map((adapter) => new Upload(adapter, limit, onAdded));
    $("uploads").prepend(...items.map((item) => item.element));
    items[0].focus();
  };
  for (const kind of ["folder", "files"]) {
    const input = $(`${kind}-input`);
    $(`choose-${kind}`).addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      offer(filesOfInput(input));
      input.value = ""; // so that the same folder can be picked again
    });
  }
  takeDrops(offer);
}

/** Take what is dropped anywhere on the part, and show where it can be. */
function takeDrops(offer) {
  const area = $("adapters");
  const show = (is) => ($("drop").dataset.over = String(is));
  const holdsFiles = (event) => event.dataTransfer.types.includes("Files");
  area.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    show(true);
  });
  area.addEventListener("dragleave", (event) => !area.contains(event.relatedTarget) && show(false));
  area.addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    show(false);
    attempt(async () => offer(await filesOfDrop(event.dataTransfer)));
  });
}

/** One adapter on its way, from its name to its card. */
class Upload {
  constructor(adapter, limit, onAdded) {
    this.#adapter = adapter;
    this.#onAdded = onAdded;
    const size = adapter.files.reduce((sum, { file }) => sum + file.size, 0);
    const fault = adapter.fault || (size > limit ? `These files are ${bytes(size)}; the server takes ${bytes(limit)} of one adapter.` : "");
    this.#name = el("input", { value: adapter.name, required: true, autocomplete: "off", spellcheck: false, maxLength: 128 });
    this.#about = el("span.hint", {}, `${plural(adapter.files.length, "file")}, ${bytes(size)}`);
    this.#send = el("button.primary", { type: "submit" }, "Upload");
    this.#close = el("button", { type: "button", onclick: () => this.#leave() }, "Cancel");
    const line = el("div.line", {}, el("label.field", {}, "Name", this.#name), this.#about, this.#send, this.#close);
    const skipped = adapter.skipped.length ? `Not sent: ${adapter.skipped.slice(0, 8).join(", ")}${adapter.skipped.length > 8 ? ", …" : ""}` : "";
    const form = el("form", { onsubmit: (event) => this.#start(event) }, line);
    this.element = el("li.card.upload", { data: { state: "new" } }, form, this.#bar, this.#error, el("p.hint.skipped", {}, skipped));
    this.#bar.hidden = true;
    if (fault) this.#refuse(fault, false);
    this.#name.addEventListener("input", debounced(() => this.#foretell(), 250));
    this.#foretell();
  }

  #adapter;
  #onAdded;
  #name;
  #about;
  #send;
  #close;
  #bar = el("progress", { max: 1, value: 0, aria: { label: "Sent" } });
  #error = el("p.error", { attrs: { role: "alert" } });
  #running = null; // an AbortController while files are sent

  /** Put the focus where the user goes on. */
  focus() {
    (this.#send.disabled ? this.#close : this.#name).focus();
    this.#name.select();
  }

  /** Say beforehand whether the name gets its next version. */
  async #foretell() {
    const name = this.#name.value.trim();
    const found = name && (await call("v1/adapters", { query: { name_prefix: name, limit: 1 }, quiet: true }).catch(() => null));
    const [card] = found?.data ?? [];
    if (name === this.#name.value.trim()) this.#send.textContent = card?.name === name ? `Upload as version ${card.version + 1}` : "Upload";
  }

  async #start(event) {
    event.preventDefault();
    if (this.#running || this.#send.disabled) return;
    this.#running = new AbortController();
    this.#set("sending");
    try {
      const onProgress = (share) => this.#progress(share);
      this.#done(await upload(this.#name.value.trim(), this.#adapter.files, { onProgress, signal: this.#running.signal }));
    } catch (failure) {
      if (failure.name === "AbortError") this.#set("new");
      else this.#refuse(failure.message, true);
    } finally {
      this.#running = null;
    }
  }

  #progress(share) {
    this.#bar.value = share;
    this.#about.textContent = share < 1 ? `${Math.round(share * 100)} % sent` : "The server checks the files";
  }

  #set(state) {
    this.element.dataset.state = state;
    this.#error.textContent = "";
    this.#bar.hidden = state !== "sending";
    this.#name.disabled = this.#send.disabled = state === "sending";
  }

  /** Show why it was refused. again: whether the user can mend it here, by another name. */
  #refuse(reason, again) {
    this.#set("refused");
    this.#about.textContent = "Refused";
    this.#error.textContent = reason;
    this.#send.disabled = this.#name.disabled = !again;
    this.#close.textContent = "Dismiss";
  }

  #done(card) {
    this.#set("done");
    const words = `${card.name} is there: version ${card.version}, ${card.method}, ${bytes(card.size)}`;
    const close = el("button", { type: "button", onclick: () => this.element.remove() }, "Dismiss");
    const use = el("button.primary", { type: "button", onclick: () => compareWith(adapterTarget(card)) }, "Compare");
    this.element.replaceChildren(el("div.line", {}, el("strong", {}, words), el("span.hint"), use, close));
    toast(words);
    use.focus();
    this.#onAdded(card);
  }

  #leave() {
    if (this.#running) this.#running.abort();
    else this.element.remove();
  }
}
