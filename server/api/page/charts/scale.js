/* Places of values on a chart: from seconds and values to the units of its drawing, and round numbers for its lines. */

export const HEIGHT = 150;
export const SECONDS = 300; // that a chart shows
const TOP = 10;
const BOTTOM = 20;

/** Return the least round number that is not under a value: 1, 2, 2.5 or 5 times a power of ten, or of 1024 for bytes. */
export function roundUp(value, step = 10) {
  if (!(value > 0)) return 1;
  const unit = step === 10 ? 10 ** Math.floor(Math.log10(value)) : 1024 ** Math.max(Math.floor(Math.log(value) / Math.log(1024)), 0);
  const within = step === 10 ? [1, 2, 2.5, 5, 10] : [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
  return unit * within.find((many) => many * unit >= value);
}

/** Return `{ x, y, timeAt }` for a chart of some width whose right edge is `now` and whose upper line is `most`. */
export function scaleOf(now, most, width) {
  return {
    x: (time) => width - ((now - time) / SECONDS) * width,
    y: (value) => HEIGHT - BOTTOM - (Math.min(value, most) / most) * (HEIGHT - TOP - BOTTOM),
    timeAt: (share) => now - (1 - share) * SECONDS,
  };
}

/** Return the paths of a line and of the area below it, in pieces where values are missing. points: `[time, value]`. */
export function pathsOf(points, { x, y }) {
  const pieces = [[]];
  for (const [time, value] of points) {
    if (value === null) pieces.push([]);
    else pieces.at(-1).push(`${x(time).toFixed(1)},${y(value).toFixed(1)}`);
  }
  const lines = pieces.filter((piece) => piece.length);
  const foot = y(0).toFixed(1);
  const closed = lines.filter((piece) => piece.length > 1).map((piece) => `M${piece[0].split(",")[0]},${foot}L${piece.join("L")}L${piece.at(-1).split(",")[0]},${foot}Z`);
  return { line: lines.map((piece) => `M${piece.join("L")}${piece.length === 1 ? "h0.1" : ""}`).join(""), area: closed.join("") };
}
