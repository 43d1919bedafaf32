/* One upload on its way: XMLHttpRequest, as fetch tells nothing of how much was sent. */
import { Failure, address, failureOf } from "../api.js";
import { askKey, currentKey, keyHeaders } from "../keys.js";

/**
 * Send an adapter's files and return its card. Raises Failure, AbortError.
 *
 * files: `{ path, file }`. onProgress: called with the share that was sent, from 0 to 1.
 */
export async function upload(name, files, { onProgress, signal }) {
  for (;;) {
    const key = currentKey();
    const { status, text } = await post(formOf(name, files), onProgress, signal);
    if (status === 201) return JSON.parse(text);
    if (status !== 401 || !(await askKey(key))) throw refusal(status, text);
  }
}

function formOf(name, files) {
  const form = new FormData();
  form.append("name", name); // first, so that a bad one is refused before the files have come
  for (const { path, file } of files) form.append("files", file, path);
  return form;
}

function post(form, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const done = () => resolve({ status: request.status, text: request.responseText });
    request.open("POST", address("v1/adapters"));
    for (const [name, value] of Object.entries(keyHeaders())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", ({ loaded, total }) => onProgress(total ? loaded / total : 0));
    request.upload.addEventListener("load", () => onProgress(1));
    request.addEventListener("load", done);
    request.addEventListener("error", done); // with status 0
    request.addEventListener("abort", () => reject(new DOMException("The upload was cancelled", "AbortError")));
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

function refusal(status, text) {
  if (status) return failureOf(status, text);
  return new Failure(0, { message: "The connection was closed before the server had all files. Is it running, and are the files still there?" });
}
