/* One chart: its newest value as a number, the last minutes as lines. Pointer and arrow keys read older values. */
import { el, svg } from "../dom.js";
import { HEIGHT, pathsOf, roundUp, scaleOf } from "./scale.js";

/**
 * A chart. title: text. series: `{ name, field }` of samples, one or two. show: from a value to `[number, unit]`.
 * step: 1024 for bytes. most: the upper line where it is always the same.
 */
export class Chart {
  constructor({ title, series, show, step = 10, most = null }) {
    Object.assign(this, { title, series, show, step, most });
    this.#drawing = svg("svg", { role: "img", tabindex: "0" });
    this.element = el("article.card.chart", {}, el("div.head", {}, el("h3", {}, title)), this.#now, this.#drawing, this.#legend);
    this.#listen();
  }

  #drawing;
  #now = el("div.now");
  #legend = el("ul.legend");
  #samples = [];
  #read = null; // which sample is read, counted from the newest; null for the newest

  /** Show samples, oldest first. */
  draw(samples) {
    this.#samples = samples;
    if (!samples.length) return;
    const most = this.most ?? roundUp(Math.max(...samples.flatMap((one) => this.series.map(({ field }) => one[field] ?? 0))), this.step);
    const width = this.#drawing.clientWidth;
    const scale = scaleOf(samples.at(-1).time, most, width);
    this.#drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.#drawing.replaceChildren(...this.#ground(most, width, scale), ...this.#lines(scale), ...this.#cursor(scale));
    this.#say();
  }

  #ground(most, width, { y }) {
    const foot = { class: "axis", y: HEIGHT - 5 };
    const ends = [svg("text", { ...foot, x: 0 }, "5 min ago"), svg("text", { ...foot, x: width, "text-anchor": "end" }, "now")];
    return ends.concat([0, most / 2, most].flatMap((value) => {
      const text = svg("text", { class: "axis", x: 0, y: y(value) - 3 }, this.#text(value));
      return [svg("line", { class: "grid", x1: 0, x2: width, y1: y(value), y2: y(value) }), value ? text : ""];
    }));
  }

  #lines(scale) {
    return this.series.flatMap(({ field }, at) => {
      const { line, area } = pathsOf(this.#samples.map((one) => [one.time, one[field]]), scale);
      return [svg("path", { class: `area s${at}`, d: area }), svg("path", { class: `line s${at}`, d: line })];
    });
  }

  #cursor({ x }) {
    if (this.#read === null) return [];
    const at = x(this.#sample().time);
    return [svg("line", { class: "cursor", x1: at, x2: at, y1: 0, y2: HEIGHT - 20 })];
  }

  #sample() {
    return this.#samples.at(-1 - Math.min(this.#read ?? 0, this.#samples.length - 1));
  }

  #say() {
    const sample = this.#sample();
    const [number, unit] = this.#shown(sample[this.series[0].field]);
    this.#now.replaceChildren(number, el("small", {}, unit));
    const items = this.series.map(({ name, field }, at) => el(`li.s${at}`, {}, `${name} ${this.#text(sample[field])}`));
    const age = Math.round(this.#samples.at(-1).time - sample.time);
    if (this.#read !== null) items.push(el("li.time", {}, `${age} s ago`));
    this.#legend.replaceChildren(...items);
    this.#drawing.setAttribute("aria-label", `${this.title}: ${items.map((one) => one.textContent).join(", ")}`);
  }

  #shown(value) {
    return value === null ? ["–", ""] : this.show(value);
  }

  #text(value) {
    return this.#shown(value).join(" ").trim();
  }

  #listen() {
    const read = (which) => {
      this.#read = which;
      this.draw(this.#samples);
    };
    this.#drawing.addEventListener("pointermove", (event) => this.#samples.length && read(this.#nearest(event)));
    this.#drawing.addEventListener("pointerleave", () => read(null));
    this.#drawing.addEventListener("blur", () => read(null));
    this.#drawing.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: 1, ArrowRight: -1 }[event.key];
      if (move) event.preventDefault();
      if (move) read(Math.min(Math.max((this.#read ?? 0) + move, 0), this.#samples.length - 1));
      if (event.key === "Escape") read(null);
    });
  }

  #nearest(event) {
    const { left, width } = this.#drawing.getBoundingClientRect();
    const time = scaleOf(this.#samples.at(-1).time, 1, width).timeAt((event.clientX - left) / width);
    const distance = (at) => Math.abs(this.#samples.at(-1 - at).time - time);
    return this.#samples.reduce((best, _, at) => (distance(at) < distance(best) ? at : best), 0);
  }
}

