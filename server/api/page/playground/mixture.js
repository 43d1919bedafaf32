/* The members of a mixture and their weights: a slider each, and a number for those who know it. */
import { el } from "../dom.js";
import { combobox } from "./picker.js";
import { findAdapters } from "./targets.js";

const LIMITS = { min: "-1", max: "2", step: "0.05" }; // of sliders; a number may be anything

/**
 * Make the editor of a mixture. members: `{ name, weight }` each, which the editor changes in place.
 * onChange: called when a weight is let go of, and when members come or go.
 */
export function mixtureEditor(members, onChange) {
  const rows = el("div", { attrs: { role: "group" }, aria: { label: "Weights" } });
  const draw = () => rows.replaceChildren(...members.map((member) => memberRow(member, () => remove(member), onChange)));
  const remove = (member) => {
    members.splice(members.indexOf(member), 1);
    draw();
    onChange();
  };
  const add = ({ name }) => {
    if (members.some((member) => member.name === name)) return;
    members.push({ name, weight: 0.5 });
    draw();
    onChange();
  };
  draw();
  return el("div.mixture", {}, rows, adder(add));
}

function adder(add) {
  const id = `mix-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
  const list = el("ul", { id, hidden: true, attrs: { role: "listbox" }, aria: { label: "Adapters" } });
  const input = el("input", {
    placeholder: "Add an adapter to the mixture",
    autocomplete: "off",
    attrs: { role: "combobox" },
    aria: { label: "Add an adapter to the mixture", controls: id, expanded: "false", autocomplete: "list" },
  });
  combobox(input, list, findAdapters, add);
  return el("div.combo", {}, input, list);
}

function memberRow(member, remove, onChange) {
  const { name } = member;
  const slider = el("input", { type: "range", ...LIMITS, value: member.weight, aria: { label: `Weight of ${name}` } });
  const number = el("input", { type: "number", step: "any", value: member.weight, aria: { label: `Weight of ${name} as a number` } });
  const follow = (from, to) => () => {
    if (from.value === "" || !from.checkValidity()) return;
    member.weight = Number(from.value);
    to.value = from.value;
  };
  slider.addEventListener("input", follow(slider, number));
  number.addEventListener("input", follow(number, slider));
  for (const input of [slider, number]) input.addEventListener("change", onChange);
  const close = el("button.quiet.close", { type: "button", onclick: remove, aria: { label: `Take ${name} out of the mixture` } }, "×");
  return el("div.member", {}, el("span", { title: name }, name), slider, number, close);
}
