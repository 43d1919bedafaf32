/* Elements made in one expression, and the few looks at the document that every part needs. */

/** Return the element with an id. */
export const $ = (id) => document.getElementById(id);

/**
 * Make an element: `el("button.primary", { type: "button", onclick: go }, "Go")`.
 *
 * what: a tag with classes. properties: those of the element; `data` and `aria` are objects of attributes, `attrs` any
 * others. children: nodes or texts; null and false are left out. Texts are never read as HTML.
 */
export function el(what, properties = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const made = document.createElement(tag);
  if (classes.length) made.className = classes.join(" ");
  const { data = {}, aria = {}, attrs = {}, ...rest } = properties;
  Object.assign(made, rest);
  Object.assign(made.dataset, data);
  for (const [name, value] of Object.entries(aria)) made.setAttribute(`aria-${name}`, value);
  for (const [name, value] of Object.entries(attrs)) made.setAttribute(name, value);
  made.append(...children.flat().filter((child) => child !== null && child !== false && child !== undefined));
  return made;
}

/** Make an element of SVG with attributes. */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Return a function that calls another once it has not been called for some milliseconds. */
export function debounced(work, milliseconds) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), milliseconds);
  };
}

/** Run a button's work once at a time: it is disabled meanwhile, and keeps the focus that it had. */
export async function whileBusy(button, work) {
  const focused = document.activeElement === button;
  button.disabled = true;
  try {
    return await work();
  } finally {
    button.disabled = false;
    if (focused && button.isConnected) button.focus();
  }
}

/** Tell whether a section is looked at: its tab is chosen, and the window is not hidden. */
export const isSeen = (section) => !section.hidden && document.visibilityState === "visible";
