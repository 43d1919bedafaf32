/* Questions in front of the page. The browser's own dialog keeps the focus inside and closes by Escape. */
import { el } from "./dom.js";

let number = 0;

/**
 * Ask something and return the value of the button that was pressed; "" for Escape.
 *
 * title: text. body: nodes. buttons: `{ text, value, primary, danger }`; Enter presses the primary one.
 * focus: the element that has the focus first; the primary button where there is none.
 */
export function openDialog({ title, body, buttons, focus }) {
  const id = `dialog-${(number += 1)}`;
  const made = buttons.map(({ text, value, primary, danger }) =>
    el(`button${primary ? ".primary" : ""}${danger ? ".danger" : ""}`, { value, type: primary ? "submit" : "button" }, text),
  );
  const form = el("form", { method: "dialog" }, el("h2", { id }, title), ...body, el("div.actions", {}, made));
  const dialog = el("dialog", { aria: { labelledby: id } }, form);
  return new Promise((resolve) => {
    for (const button of made) {
      if (button.type === "button") button.addEventListener("click", () => dialog.close(button.value));
    }
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue);
    });
    document.body.append(dialog);
    dialog.showModal();
    (focus ?? made.find((button) => button.type === "submit")).focus();
  });
}

/** Ask before something that cannot be taken back. Returns whether it may go on. */
export async function confirmed(title, text, verb) {
  const chosen = await openDialog({
    title,
    body: [el("p", {}, text)],
    buttons: [{ text: "Cancel", value: "" }, { text: verb, value: "yes", primary: true, danger: true }],
  });
  return chosen === "yes";
}
