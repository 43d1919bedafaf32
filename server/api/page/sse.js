/* Server-sent events of an answer that was fetched: an EventSource can send no key and no body. */

/**
 * Yield the events of an answer, each `{ event, data, id, at }`, as they come.
 *
 * at: when the piece that ends it was read, as `performance.now()` counts: events that came in one piece share it.
 * Follows the HTML standard: lines end by CR, LF or both, several lines of data are joined, comments are left out.
 */
export async function* eventsOf(answer) {
  let event = blank();
  for await (const { line, at } of linesOf(answer.body)) {
    if (line === "") {
      if (event.data !== null) yield { ...event, at };
      event = blank();
    } else {
      take(event, line);
    }
  }
}

const blank = () => ({ event: "message", data: null, id: "" });

function take(event, line) {
  const colon = line.indexOf(":");
  if (colon === 0) return; // a comment
  const field = colon < 0 ? line : line.slice(0, colon);
  const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
  if (field === "data") event.data = event.data === null ? value : `${event.data}\n${value}`;
  else if (field === "event" || field === "id") event[field] = value;
}

async function* linesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const at = performance.now();
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/); // a CR at the end may have its LF in the next piece
      rest = lines.pop();
      for (const line of lines) yield { line, at };
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
