/* What can be done with an adapter. Each asks first where it takes something away, and shows why it has failed. */
import { Failure, call, pathOf } from "../api.js";
import { confirmed } from "../dialog.js";
import { attempt, toast } from "../toasts.js";

/** Return the actions. server: what `/v1/server` says. onChange: called when something was done. */
export function makeActions(server, onChange) {
  const doing = (work) => attempt(async () => {
    toast(await work());
    await onChange();
  });
  return {
    setDefault: (name) => doing(() => setDefault(name)),
    load: (name) => doing(() => load(name)),
    pin: (name, pinned) => doing(() => pin(name, pinned)),
    rollBack: (name, to) => doing(() => rollBack(name, to)),
    remove: (named) => attempt(() => remove(named, server, onChange)),
  };
}

async function setDefault(name) {
  await call("v1/default-adapter", { method: "PUT", body: { adapter: name } });
  return name ? `${name} answers by default now` : "The base answers by default now";
}

async function load(name) {
  const card = await call(pathOf("adapters", name, "/load"), { method: "POST" });
  return `${card.name}@${card.version} is on the device`;
}

async function pin(name, pinned) {
  await call(pathOf("adapters", name), { method: "PATCH", body: { pinned: pinned || null } });
  return pinned ? `${name} stays on the device` : `${name} may leave the device`;
}

async function rollBack(name, to) {
  const card = await call(pathOf("adapters", name, "/rollback"), { method: "POST", body: { to } });
  return `${name}@${to} is the newest again, as version ${card.version}`;
}

async function remove(named, server, onChange) {
  const what = named.includes("@") ? "This version goes" : "All its versions go";
  const back = server.keep_deleted ? `It can be restored for ${server.keep_deleted} seconds.` : "This cannot be taken back.";
  if (!(await confirmed(`Delete ${named}?`, `${what}; requests that run finish on it. ${back}`, "Delete"))) return;
  if (!(await deleted(named))) return;
  const restoring = { text: "Restore", run: () => attempt(() => restore(named, onChange)) };
  toast(`${named} is deleted`, { action: server.keep_deleted ? restoring : null });
  await onChange();
}

/** Delete, also by force where a route names it and the user still wants it. Returns whether it was deleted. */
async function deleted(named) {
  const path = pathOf("adapters", named);
  try {
    await call(path, { method: "DELETE" });
  } catch (failure) {
    if (!(failure instanceof Failure) || failure.status !== 409) throw failure;
    if (!(await confirmed(`Delete ${named} all the same?`, failure.message, "Delete anyway"))) return false;
    await call(path, { method: "DELETE", query: { force: true } });
  }
  return true;
}

async function restore(named, onChange) {
  const { data } = await call(pathOf("adapters", named, "/restore"), { method: "POST" });
  toast(`${data.map((card) => `${card.name}@${card.version}`).join(", ")} restored`);
  await onChange();
}
