/* Short notes at the edge of the page, read out by screen readers, gone by themselves. */
import { $, el } from "./dom.js";

const SECONDS = { ok: 5, error: 12 };

/** Show a note. kind: `ok` or `error`. action: `{ text, run }`, a button that ends it. */
export function toast(text, { kind = "ok", action = null } = {}) {
  const note = el("div.toast", { data: { kind } }, el("span", {}, text));
  const close = () => note.remove();
  if (action) {
    const run = () => {
      close();
      action.run();
    };
    note.append(el("button.quiet", { type: "button", onclick: run }, action.text));
  }
  note.append(el("button.quiet.close", { type: "button", onclick: close, aria: { label: "Close this note" } }, "×"));
  $("toasts").append(note);
  setTimeout(close, (SECONDS[kind] + (action ? 5 : 0)) * 1000);
}

/** Show why something has failed: the server's own words. */
export const showFailure = (failure) => toast(failure.message, { kind: "error" });

/** Do something, and show why it has failed if it has. Returns its result, or undefined. */
export async function attempt(work) {
  try {
    return await work();
  } catch (failure) {
    showFailure(failure);
    return undefined;
  }
}
