/* Bodies of routes: what to begin with for each kind, how one is shown in a line, how one is read from a text. */

/** A body of each kind, with the names of adapters that are there. */
export const TEMPLATES = {
  alias: ([a]) => ({ kind: "alias", target: a }),
  split: ([a, b]) => ({ kind: "split", arms: [{ target: a, weight: 0.9 }, { target: b, weight: 0.1 }], sticky: "user" }),
  match: ([a, b]) => ({
    kind: "match", encoder: "tfidf", threshold: 0.3, fallback: null,
    candidates: [{ target: a, examples: ["What such a prompt looks like"] }, { target: b, keywords: ["other"] }],
  }),
  mixture: ([a, b]) => ({ kind: "mixture", adapters: [{ name: a, weight: 0.7 }, { name: b, weight: 0.3 }] }),
  fallback: ([a, b]) => ({ kind: "fallback", targets: [a, b] }),
};

const LISTS = { alias: "target", split: "arms", match: "candidates", mixture: "adapters", fallback: "targets" };

/** Return the names that a route leads to, in its order. */
export function targetsOf(card) {
  const listed = [card[LISTS[card.kind]] ?? []].flat();
  return listed.map((one) => (typeof one === "string" ? one : (one.target ?? one.name)));
}

/** Return a card's body, as it was put. */
export function bodyOf({ name: _name, object: _object, version: _version, created: _created, ...body }) {
  return body;
}

/** Return a body as a text that is pleasant to change: short lists of numbers and names stay on a line. */
export function written(body) {
  const text = JSON.stringify(body, null, 2);
  return text.replaceAll(/[{[]\n\s+[^{}[\]]{1,90}?\n\s*[}\]]/g, (inner) => inner.replaceAll(/\n\s*/g, " "));
}

/** Return the object that a text holds. Raises Error that says where it is no JSON. */
export function read(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch (error) {
    throw new Error(`This is not JSON: ${error.message}`);
  }
  if (found === null || typeof found !== "object" || Array.isArray(found)) throw new Error("A route is an object: { … }");
  return found;
}
