/* The API key: asked for when the server wants one, kept until the tab is closed, sent as a Bearer token. */
import { openDialog } from "./dialog.js";
import { el } from "./dom.js";

const KEY = "peftserve.key";
let held = read();
let asking = null; // the promise of the dialog that is open, which all who need a key share

function read() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // storage may be forbidden
  }
}

function keep(key) {
  held = key;
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {
    /* it is held until the page is left */
  }
}

/** Return the key that is held; "" for none. */
export const currentKey = () => held;

/** Return the headers that a request needs. */
export const keyHeaders = () => (held ? { Authorization: `Bearer ${held}` } : {});

/**
 * Ask for a key in place of the one that was refused. Returns whether there is another now.
 *
 * refused: the key that was sent; where another is held by now, nobody is asked.
 */
export async function askKey(refused) {
  if (held !== refused) return true;
  asking ??= ask(refused).finally(() => (asking = null));
  return asking;
}

/** Let the user set, change or forget the key. Returns whether it has changed. */
export async function changeKey() {
  return (await ask(null)) === true;
}

async function ask(refused) {
  const input = el("input", { type: "password", id: "key-input", autocomplete: "off", spellcheck: false });
  const text = refused
    ? "The server does not know this key. Send another one."
    : refused === "" ? "This server asks for an API key." : "The key is sent with each request of this page.";
  const chosen = await openDialog({
    title: "API key",
    body: [
      el("p", {}, text),
      el("label.field.wide", {}, "Key", input),
      el("p.hint", {}, "Kept in this tab only, and gone when you close it."),
    ],
    buttons: [{ text: "Cancel", value: "" }, { text: "Use the key", value: "use", primary: true }],
    focus: input,
  });
  if (chosen !== "use" || (refused !== null && !input.value.trim())) return false;
  keep(input.value.trim());
  return true;
}
