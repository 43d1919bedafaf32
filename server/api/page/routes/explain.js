/* What a route would choose for a prompt, without an answer being made. */
import { call, pathOf } from "../api.js";
import { el, whileBusy } from "../dom.js";

/** Make the part of the editor that explains a route. name: the route's. */
export function explainer(name) {
  const prompt = el("input", { placeholder: "A prompt", required: true, aria: { label: "Prompt to explain" } });
  const user = el("input", { placeholder: "User, for sticky splits", aria: { label: "User" } });
  const button = el("button", { type: "submit" }, "Explain");
  const outcome = el("div", { attrs: { role: "status" } });
  const explain = async () => {
    try {
      const body = { prompt: prompt.value, user: user.value.trim() || null };
      outcome.replaceChildren(...shown(await call(pathOf("routes", name, "/explain"), { method: "POST", body })));
    } catch (failure) {
      outcome.replaceChildren(el("p.error", {}, failure.message));
    }
  };
  const onsubmit = (event) => {
    event.preventDefault();
    whileBusy(button, explain);
  };
  return el("form.explain", { onsubmit }, el("h3", {}, "What would it choose?"), el("div.line", {}, prompt, user, button), outcome);
}

function shown({ chosen, arm, adapters, scores }) {
  const words = [el("b", {}, chosen), arm === null ? "" : `, number ${arm} of its list (from 0)`];
  const parts = adapters.map(({ name, weight }) => `${name} × ${weight}`).join(" + ");
  const best = Math.max(...scores.map(({ score }) => score));
  const bars = scores.map(({ target, score }) =>
    el("li", {}, el("span", {}, target), el("meter", { min: 0, max: 1, value: Math.max(score, 0), aria: { label: `Score of ${target}` } }),
      el("output", {}, score === best ? el("b", {}, score.toFixed(3)) : score.toFixed(3))),
  );
  return [el("p", {}, "Chooses ", words), parts && el("p.hint", {}, parts), bars.length && el("ul.scores", { aria: { label: "Scores" } }, bars)].filter(Boolean);
}
