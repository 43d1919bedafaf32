/* One question to one target, as a stream, with its times measured where the user is. */
import { Failure, send } from "../api.js";
import { eventsOf } from "../sse.js";

const TOGETHER = 1; // milliseconds; what comes within them has come at once, and says nothing of the speed

/**
 * What may answer. kind: `base`, `adapter`, `route` or `mixture`. name: as the field `model` has it, and as it is shown.
 * note: a few words beside the name. members: of a mixture, `{ name, weight }` each.
 * @typedef {{ kind: string, name: string, note?: string, members?: { name: string, weight: number }[] }} Target
 */

/**
 * Ask, and return `{ by, tokens, firstToken, perSecond, finish }` at the end. Raises Failure, AbortError.
 *
 * question: `{ chat, prompt, system, temperature, maxTokens, seed }`. on: `text(piece)` and `reasoning(piece)`.
 * by: what answered, as the server says. firstToken: seconds. perSecond: tokens behind those that came first, a second;
 * null where all came at once.
 */
export async function ask(target, question, signal, on) {
  const started = performance.now();
  const path = question.chat ? "v1/chat/completions" : "v1/completions";
  const answer = await send(path, { method: "POST", body: bodyOf(target, question), signal });
  const seen = { by: answer.headers.get("x-peftserve-adapter") ?? "", tokens: 0, finish: "", first: null, early: 0, last: null };
  let whole = false;
  for await (const { data, at } of eventsOf(answer)) {
    whole = data === "[DONE]"; // and is read to its end, or else it would count as broken off
    if (!whole) take(JSON.parse(data), at, seen, on);
  }
  if (whole) return statistics(seen, started);
  throw new Failure(0, { message: "The server has closed the connection before the end of the answer." });
}

function bodyOf(target, { chat, prompt, system, temperature, maxTokens, seed }) {
  const messages = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: prompt }];
  return {
    ...(target.kind === "mixture" ? { adapters: target.members } : { model: target.name }),
    ...(chat ? { messages } : { prompt }),
    temperature,
    max_tokens: maxTokens,
    ...(seed === null ? {} : { seed }),
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  };
}

function take(chunk, at, seen, on) {
  if (chunk.error) throw new Failure(0, chunk.error);
  if (chunk.usage) seen.tokens = chunk.usage.completion_tokens;
  const [choice] = chunk.choices ?? [];
  if (!choice) return;
  const reasoning = choice.delta?.reasoning_content ?? choice.delta?.reasoning ?? "";
  const text = choice.delta ? (choice.delta.content ?? "") : (choice.text ?? "");
  if (reasoning || text) {
    seen.last = at;
    seen.first ??= at;
    if (at - seen.first < TOGETHER) seen.early = seen.tokens;
  }
  if (reasoning) on.reasoning(reasoning);
  if (text) on.text(text);
  if (choice.finish_reason) seen.finish = choice.finish_reason;
}

function statistics({ by, tokens, finish, first, early, last }, started) {
  return {
    by,
    tokens,
    finish,
    firstToken: first === null ? null : (first - started) / 1000,
    perSecond: last - first < TOGETHER ? null : (1000 * (tokens - early)) / (last - first),
  };
}
