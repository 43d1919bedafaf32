/* What happens to adapters, as the server tells it, for as long as somebody looks. */
import { send } from "../api.js";
import { eventsOf } from "../sse.js";

const RETRY_SECONDS = 5;

/** The server's events, heard between `start` and `stop`. onEvent: called for each; polls do the rest where there are none. */
export class Watch {
  constructor(onEvent) {
    this.#onEvent = onEvent;
  }

  #onEvent;
  #run = null;

  /** Listen, if not already. */
  start() {
    if (this.#run) return;
    this.#run = new AbortController();
    this.#listen(this.#run.signal);
  }

  /** Close the connection: browsers have few for one server, and answers need them. */
  stop() {
    this.#run?.abort();
    this.#run = null;
  }

  async #listen(signal) {
    while (!signal.aborted) {
      try {
        const answer = await send("v1/adapters/events", { signal, quiet: true });
        for await (const event of eventsOf(answer)) this.#onEvent(event.event);
      } catch {
        /* too many watch, or the server has left: the next try may do better */
      }
      if (!signal.aborted) await new Promise((resolve) => setTimeout(resolve, RETRY_SECONDS * 1000));
    }
  }
}
