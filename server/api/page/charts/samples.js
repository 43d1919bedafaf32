/* Looks at /metrics, one after the other, and what two of them say together: rates and quantiles. */
import { send } from "../api.js";
import { buckets, parse, quantile, total } from "./prometheus.js";

const WINDOW_SECONDS = 300;
const SPAN_SECONDS = 10; // over which the times of first tokens are gathered
const FIRST_TOKEN = "peftserve_time_to_first_token_seconds";

/** The last looks, oldest first. time: in seconds; the others as they are shown, or null. */
export const samples = [];
const raw = []; // what later looks are compared with

/** Look once, and keep what is seen. Raises Failure. */
export async function look() {
  const answer = await send("metrics", { quiet: true });
  const now = readingOf(parse(await answer.text()));
  const last = raw.at(-1);
  if (last && now.tokens < last.tokens) raw.length = samples.length = 0; // the server has begun anew
  samples.push(sampleOf(now));
  raw.push(now);
  forget(samples, now.time - WINDOW_SECONDS);
  forget(raw, now.time - SPAN_SECONDS);
}

function readingOf(metrics) {
  return {
    time: performance.now() / 1000,
    tokens: total(metrics, "peftserve_generation_tokens_total"),
    prompt: total(metrics, "peftserve_prompt_tokens_total"),
    firstToken: buckets(metrics, FIRST_TOKEN),
    running: total(metrics, "peftserve_sequences_running"),
    waiting: total(metrics, "peftserve_sequences_waiting"),
    kv: total(metrics, "peftserve_kv_cache_usage_ratio") * 100,
    device: total(metrics, "peftserve_adapter_bytes", { tier: "device" }),
    resident: total(metrics, "peftserve_adapters_resident", { tier: "device" }),
    host: total(metrics, "peftserve_adapter_bytes", { tier: "host" }),
  };
}

function sampleOf(now) {
  const last = raw.at(-1);
  const oldest = raw[0];
  const seconds = last ? now.time - last.time : 0;
  const rate = (field) => (seconds > 0 ? (now[field] - last[field]) / seconds : null);
  const below = (share) => (oldest ? quantile(share, now.firstToken, oldest.firstToken) : null);
  const { time, running, waiting, kv, device, resident, host } = now;
  return { time, running, waiting, kv, device, resident, host, tokens: rate("tokens"), prompt: rate("prompt"), median: below(0.5), slow: below(0.95) };
}

function forget(kept, before) {
  while (kept.length && kept[0].time < before) kept.shift();
}
