/* Requests to the server: with the key, relative to where the page lies, failures in the server's own words. */
import { askKey, currentKey, keyHeaders } from "./keys.js";

/** The address that the server's routes lie below, whatever prefix a proxy has put before it. */
const BASE = new URL("../", import.meta.url);

/** A refusal of the server. status: HTTP's, 0 where no answer came. param: what was wrong, if one thing was. */
export class Failure extends Error {
  constructor(status, { message, code = null, param = null }) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
  }
}

/**
 * Tell whether a failure is the server's refusal of a request, which shows that it is there: no answer, and a proxy's
 * that stands for one, or a fault of the server, show no such thing.
 */
export const isRefusal = (failure) => failure.status >= 400 && failure.status < 500;

/** Return the address of a path such as `v1/adapters`. query: names and values; empty ones are left out. */
export function address(path, query = {}) {
  const found = new URL(path, BASE);
  for (const [name, value] of Object.entries(query)) {
    if (value !== "" && value !== null && value !== undefined) found.searchParams.set(name, value);
  }
  return found;
}

/** Return the path of one of several things: its name may hold anything. */
export const pathOf = (kind, name, rest = "") => `v1/${kind}/${encodeURIComponent(name)}${rest}`;

/** Return what a body of an error says, or what can be said without one. */
export function failureOf(status, text) {
  try {
    return new Failure(status, JSON.parse(text).error);
  } catch {
    return new Failure(status, { message: status ? `The server has answered with status ${status}.` : "The server cannot be reached." });
  }
}

/**
 * Send a request and return its answer, which is a success. Raises Failure, and AbortError where `signal` says so.
 *
 * body: sent as JSON. quiet: for what nobody has asked for, such as polls: no question for a key.
 */
export async function send(path, { method = "GET", body, query, signal, quiet = false } = {}) {
  for (;;) {
    const key = currentKey();
    const answer = await reach(address(path, query), {
      method,
      signal,
      cache: "no-store",
      headers: { ...keyHeaders(), ...(body === undefined ? {} : { "Content-Type": "application/json" }) },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    if (answer.ok) return answer;
    const failure = failureOf(answer.status, await answer.text());
    if (answer.status !== 401 || quiet || !(await askKey(key))) throw failure;
  }
}

async function reach(url, options) {
  try {
    return await fetch(url, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : failureOf(0, "");
  }
}

/** Send a request and return the JSON of its answer. Takes and raises what `send` does. */
export const call = async (path, options) => (await send(path, options)).json();
