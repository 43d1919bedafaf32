/* The page's parts: one is seen, the address says which, and arrow keys go through them. */

const tabs = [...document.querySelectorAll('[role="tab"]')];
const panelOf = (tab) => document.getElementById(tab.getAttribute("aria-controls"));
const listeners = new Map(); // from a part's id to what is called each time it is shown

/** Call something each time a part is shown. */
export function onShown(id, listener) {
  listeners.set(id, listener);
}

/** Show a part, and say so in the address. */
export function showTab(id) {
  if (location.hash === `#${id}`) choose(id);
  else location.hash = id; // the change is heard below
}

function choose(id) {
  const chosen = tabs.find((tab) => panelOf(tab).id === id) ?? tabs[0];
  for (const tab of tabs) {
    const is = tab === chosen;
    tab.setAttribute("aria-selected", String(is));
    tab.tabIndex = is ? 0 : -1;
    panelOf(tab).hidden = !is;
  }
  listeners.get(panelOf(chosen).id)?.();
}

const STEPS = { ArrowRight: 1, ArrowLeft: -1 };

function step(event) {
  const at = tabs.indexOf(event.target);
  const to = event.key === "Home" ? 0 : event.key === "End" ? tabs.length - 1 : at + (STEPS[event.key] ?? NaN);
  if (at < 0 || Number.isNaN(to)) return;
  event.preventDefault();
  const tab = tabs[(to + tabs.length) % tabs.length];
  showTab(panelOf(tab).id);
  tab.focus();
}

/** Show what the address names, and follow it from now on. */
export function startTabs() {
  for (const tab of tabs) {
    tab.addEventListener("click", () => showTab(panelOf(tab).id));
    tab.addEventListener("keydown", step);
  }
  const follow = () => {
    if (location.hash !== "#main") choose(location.hash.slice(1));
  };
  addEventListener("hashchange", follow);
  follow();
}
