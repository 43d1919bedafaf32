/* The charts, drawn anew at each look at /metrics: often while they are seen, now and then while another part is. */
import { isRefusal } from "../api.js";
import { $, isSeen } from "../dom.js";
import { bytes, duration, short } from "../format.js";
import { onShown } from "../tabs.js";
import { Chart } from "./chart.js";
import { look, samples } from "./samples.js";

const OFTEN = 2; // seconds
const SELDOM = 6;

const split = (text) => text.split(" ");
const CHARTS = [
  { title: "Throughput", series: [{ name: "generated", field: "tokens" }, { name: "prompts", field: "prompt" }], show: (value) => [short(value), "tokens/s"] },
  { title: "Time to the first token", series: [{ name: "median", field: "median" }, { name: "95 of 100 within", field: "slow" }], show: (value) => split(duration(value)) },
  { title: "Requests in the engine", series: [{ name: "running", field: "running" }, { name: "waiting", field: "waiting" }], show: (value) => [short(value), ""] },
  { title: "KV cache in use", series: [{ name: "of all pages", field: "kv" }], show: (value) => [short(value), "%"], most: 100 },
  { title: "Adapters’ memory", series: [{ name: "device", field: "device" }, { name: "host", field: "host" }], show: (value) => split(bytes(value)), step: 1024 },
  { title: "Adapters on the device", series: [{ name: "adapters", field: "resident" }], show: (value) => [short(value), ""] },
];

/** Start looking. onHealth: called after each look with whether the server has answered, be it with a refusal. */
export function startCharts(onHealth) {
  const section = $("charts");
  const charts = CHARTS.map((one) => new Chart(one));
  $("chart-grid").replaceChildren(...charts.map((chart) => chart.element));
  const draw = () => isSeen(section) && charts.forEach((chart) => chart.draw(samples));
  let timer = 0;

  async function again() {
    clearTimeout(timer);
    if (document.visibilityState === "visible") {
      const failure = await look().then(() => null, (failure) => failure);
      onHealth(failure === null || isRefusal(failure));
      showRefusal(failure);
    }
    draw();
    clearTimeout(timer); // another call may have come meanwhile
    timer = setTimeout(again, (isSeen(section) ? OFTEN : SELDOM) * 1000);
  }

  onShown("charts", again);
  document.addEventListener("visibilitychange", again);
  again();
}

/** Say why there is nothing to draw where metrics are for others; what is drawn is kept where no answer has come. */
function showRefusal(failure) {
  if (failure !== null && !isRefusal(failure)) return;
  const why = [401, 403].includes(failure?.status) ? ": they need another key" : "";
  $("charts-refusal").hidden = failure === null;
  $("charts-refusal").textContent = failure === null ? "" : `The server does not show its metrics here${why}. ${failure.message}`;
}
