/* What may answer, found by the beginning of its name: the base, adapters, routes. */
import { call } from "../api.js";

const MOST = 8; // of each kind

/** Return the target that an adapter's card stands for. */
export const adapterTarget = (card) => ({
  kind: "adapter",
  name: card.name,
  note: card.rank ? `${card.method} r${card.rank}` : card.method,
});

/** Return the target that a route's card stands for. */
export const routeTarget = (card) => ({ kind: "route", name: card.name, note: card.kind });

/** Return adapters whose names begin with a text. */
export async function findAdapters(text) {
  const { data } = await call("v1/adapters", { query: { name_prefix: text, limit: MOST }, quiet: true });
  return data.map(adapterTarget);
}

/** Return all that may answer and begins with a text: the base first. */
export async function findTargets(text, base) {
  const [adapters, routes] = await Promise.all([findAdapters(text), call("v1/routes", { query: { limit: 100 }, quiet: true })]);
  const starts = ({ name }) => name.toLowerCase().startsWith(text.toLowerCase());
  const named = routes.data.map(routeTarget).filter(starts).slice(0, MOST);
  return [...[{ kind: "base", name: base, note: "base" }].filter(starts), ...adapters, ...named];
}
