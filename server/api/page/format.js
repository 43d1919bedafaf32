/* Numbers and times as people read them. */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
const AGES = [[60, "second"], [60, "minute"], [24, "hour"], [30, "day"], [12, "month"], [Infinity, "year"]];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });

/** Return a number of bytes with its unit: `1.1 MiB`. */
export function bytes(number) {
  let unit = 0;
  while (number >= 1024 && unit < UNITS.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${unit && number < 100 ? number.toFixed(1) : Math.round(number)} ${UNITS[unit]}`;
}

/** Return how long ago a Unix time in seconds was. */
export function ago(seconds) {
  let age = Math.max(Date.now() / 1000 - seconds, 0);
  for (const [many, unit] of AGES) {
    if (age < many) return unit === "second" && age < 5 ? "just now" : relative.format(-Math.floor(age), unit);
    age /= many;
  }
  return "";
}

/** Return a Unix time in seconds as date and time. */
export const when = (seconds) => new Date(seconds * 1000).toLocaleString();

/** Return seconds as `84 ms` or `1.20 s`. */
export const duration = (seconds) => (seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(2)} s`);

/** Return a number with as many digits as say something. */
export function short(number) {
  if (Number.isInteger(number) || number >= 100) return String(Math.round(number));
  return number.toFixed(number >= 10 ? 1 : 2);
}

/** Return `1 file`, `2 files`. */
export const plural = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
