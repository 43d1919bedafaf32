/* Prometheus' text format: names, labels and values. Knows nothing of what they mean. */

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { n: "\n", "\\": "\\", '"': '"' };

/** Return a Map from each metric's name to its series, `{ labels, value }` each. */
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : LINE.exec(line);
    if (!match) continue;
    const [, name, labels, value] = match;
    if (!found.has(name)) found.set(name, []);
    found.get(name).push({ labels: labelsOf(labels ?? ""), value: numberOf(value) });
  }
  return found;
}

function labelsOf(text) {
  const pairs = [...text.matchAll(LABEL)].map(([, name, value]) => [name, value.replaceAll(/\\(.)/g, (_, one) => ESCAPES[one] ?? one)]);
  return Object.fromEntries(pairs);
}

function numberOf(text) {
  return /^[+-]?Inf/i.test(text) ? (text.startsWith("-") ? -Infinity : Infinity) : Number(text);
}

/** Return the sum of a metric's series that have all of some labels; 0 where there is none. */
export function total(metrics, name, labels = {}) {
  const fits = (series) => Object.entries(labels).every(([label, value]) => series.labels[label] === value);
  return (metrics.get(name) ?? []).filter(fits).reduce((sum, { value }) => sum + value, 0);
}

/** Return a histogram's counts up to each bound, summed over all other labels: a Map from the bound. */
export function buckets(metrics, name) {
  const counts = new Map();
  for (const { labels, value } of metrics.get(`${name}_bucket`) ?? []) {
    const bound = numberOf(labels.le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return counts;
}

/**
 * Return the value below which a share of what was observed between two times lies, by straight lines inside of
 * buckets, as Prometheus' histogram_quantile does; null where nothing was observed.
 */
export function quantile(share, after, before) {
  const bounds = [...after.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound) => after.get(bound) - (before.get(bound) ?? 0));
  const all = counts.at(-1) ?? 0;
  if (!(all > 0)) return null;
  const at = counts.findIndex((count) => count >= share * all);
  if (bounds[at] === Infinity) return bounds[at - 1] ?? null;
  const [low, below] = at ? [bounds[at - 1], counts[at - 1]] : [0, 0];
  return low + ((bounds[at] - low) * (share * all - below)) / (counts[at] - below);
}
