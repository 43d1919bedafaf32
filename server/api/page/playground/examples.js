/* Prompts to begin with: the demo's, and those that routes by content have been given as examples. */
import { call } from "../api.js";
import { adapterTarget, routeTarget } from "./targets.js";

const MOST = 6;

/** What each of the built-in demo's adapters does well: a prompt, and who shall answer it beside the base. */
const DEMO = [
  { prompt: "quiet river bridge", names: ["snake", "title", "reverse"] },
  { prompt: "Show the title of films whose length is over 120.", names: ["sql", "auto"] },
  { prompt: "Maria bought 58 purple lamps in Athens.", names: ["json", "auto"] },
  { prompt: "January 5, 1999", names: ["dates", "auto"] },
  { prompt: "six hundred ninety", names: ["numbers", "auto"] },
];

/**
 * Return `{ examples, first }`: examples as `{ prompt, targets }`, and the adapters to begin with.
 *
 * base: the base's id. Names of the demo are offered only where there is something of that name.
 */
export async function loadExamples(base) {
  const [adapters, routes] = await Promise.all([
    call("v1/adapters", { query: { limit: 50 } }),
    call("v1/routes", { query: { limit: 50 } }),
  ]);
  const known = new Map([...routes.data.map(routeTarget), ...adapters.data.map(adapterTarget)].map((one) => [one.name, one]));
  const written = base === "demo" ? DEMO : routes.data.flatMap(ofRoute);
  const examples = written.flatMap(({ prompt, names }) => {
    const targets = names.filter((name) => known.has(name)).map((name) => known.get(name));
    return targets.length ? [{ prompt, targets }] : [];
  });
  return { examples: examples.slice(0, MOST), first: adapters.data.slice(0, 3).map(adapterTarget) };
}

/** Return an example of each candidate of a route by content, answered by the candidate and by the route. */
function ofRoute(card) {
  if (card.kind !== "match") return [];
  return (card.candidates ?? []).flatMap(({ target, examples }) =>
    examples?.length ? [{ prompt: examples[0], names: [target, card.name] }] : [],
  );
}
