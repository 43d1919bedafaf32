/* A field that finds things while its user types. Down and Up go through them, Enter takes one, Escape closes. */
import { debounced, el } from "../dom.js";

let number = 0;

/**
 * Make a combobox of an input and a list. find: from a text to targets, async. onPick: called with the one that is taken.
 */
export function combobox(input, list, find, onPick) {
  let found = [];
  let text = ""; // what they were found by
  let at = -1;
  let asked = 0; // answers to older questions are dropped
  let entered = false; // Enter came before the answer to what was typed last, which is taken when it comes

  async function search() {
    const mine = (asked += 1);
    const typed = input.value.trim();
    const targets = await find(typed).catch(() => []);
    if (mine !== asked || document.activeElement !== input) return;
    [found, text] = [targets, typed];
    draw(found.length && typed ? 0 : -1);
    if (entered) takeMarked();
  }

  function draw(chosen) {
    list.replaceChildren(...(found.length ? found.map(option) : [el("li.none", {}, "There is nothing of this name")]));
    open(true);
    mark(chosen);
  }

  function option(target) {
    const made = el("li", { id: `option-${(number += 1)}`, attrs: { role: "option" }, aria: { selected: "false" } },
      el("span", {}, target.name), el("span.tag", {}, target.kind === "adapter" ? target.note : target.kind));
    made.addEventListener("mousedown", (event) => event.preventDefault()); // the input keeps the focus
    made.addEventListener("click", () => take(target));
    return made;
  }

  function mark(index) {
    list.children[at]?.setAttribute("aria-selected", "false");
    at = index;
    const chosen = found.length ? list.children[at] : undefined;
    chosen?.setAttribute("aria-selected", "true");
    chosen?.scrollIntoView({ block: "nearest" });
    if (chosen) input.setAttribute("aria-activedescendant", chosen.id);
    else input.removeAttribute("aria-activedescendant");
  }

  function open(is) {
    list.hidden = !is;
    input.setAttribute("aria-expanded", String(is));
    if (is) return;
    asked += 1;
    entered = false;
  }

  const isStale = () => input.value.trim() !== text;

  function takeMarked() {
    entered = isStale();
    if (entered) search();
    else if (!list.hidden && found[at]) take(found[at]);
  }

  function take(target) {
    input.value = text = "";
    open(false);
    onPick(target);
  }

  const keys = {
    ArrowDown: () => (list.hidden ? search() : mark(Math.min(at + 1, found.length - 1))),
    ArrowUp: () => mark(Math.max(at - 1, 0)),
    Enter: takeMarked,
    Escape: () => open(false),
  };

  input.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || !(event.key in keys) || (event.key === "Escape" && list.hidden)) return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  });
  input.addEventListener("input", debounced(() => isStale() && search(), 120));
  input.addEventListener("focus", search);
  input.addEventListener("click", () => list.hidden && search());
  input.addEventListener("blur", () => open(false));
}
