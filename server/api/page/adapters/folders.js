/* What was dropped or picked, as adapters: which folder is one, and which of its files are sent. Knows no server. */

const CONFIG = "adapter_config.json";
/* Files that belong to an adapter: its own, and those of a tokenizer that was saved beside it. */
const KNOWN = [
  /^adapter_config\.json$/, /\.safetensors$/, /\.safetensors\.index\.json$/,
  /^tokenizer(_config)?\.json$/, /^tokenizer\.model$/, /^special_tokens_map\.json$/, /^added_tokens\.json$/,
  /^vocab\.(json|txt)$/, /^merges\.txt$/, /^chat_template\.(jinja|json)$/,
];
const PICKLE = /\.(bin|pt|pth|pkl|ckpt)$/;
const NO_FOLDER = /^(checkpoint-\d+|runs|\.git|__pycache__|\.ipynb_checkpoints)$/; // what trainers leave beside an adapter
const MOST_FILES = 5000;

/** Return the files of a drop, with folders walked, as `{ path, file }`. Raises Error for more than a drop should hold. */
export async function filesOfDrop(transfer) {
  const items = [...transfer.items].filter(({ kind }) => kind === "file");
  const dropped = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile()); // gone after the first await
  const found = [];
  for (const one of dropped.filter(Boolean)) {
    if (one instanceof File) found.push({ path: one.name, file: one });
    else await walk(one, "", found);
  }
  return found;
}

async function walk(entry, folder, found) {
  const path = folder + entry.name;
  if (entry.isFile) {
    if (found.length >= MOST_FILES) throw new Error(`More than ${MOST_FILES} files were dropped: drop the adapter’s own folder.`);
    found.push({ path, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) });
  } else if (!NO_FOLDER.test(entry.name)) {
    for (const child of await childrenOf(entry)) await walk(child, `${path}/`, found);
  }
}

/** Return all children of a folder: a reader gives a hundred at a time. */
async function childrenOf(entry) {
  const reader = entry.createReader();
  const children = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return children;
    children.push(...some);
  }
}

/** Return the files of an input, as `{ path, file }`. */
export function filesOfInput(input) {
  const files = [...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
  return files.filter(({ path }) => !path.split("/").slice(0, -1).some((folder) => NO_FOLDER.test(folder)));
}

/**
 * Put files together to adapters, each `{ name, files, skipped, fault }`.
 *
 * A folder with a configuration is an adapter, with all below it (experts lie in folders of their own). Without one, all
 * is taken for one adapter, and the server says what is missing. name: a proposal. files: those to be sent, `{ path,
 * file }` with paths inside the adapter. skipped: paths of others. fault: why nothing can be sent, or "".
 */
export function adaptersOf(files) {
  const roots = rootsOf(files.map(({ path }) => path));
  return roots.map((root) => {
    const inside = files.filter(({ path }) => path.startsWith(root));
    const relative = inside.map(({ path, file }) => ({ path: path.slice(root.length), file }));
    const isKnown = ({ path }) => KNOWN.some((pattern) => pattern.test(path.split("/").at(-1)));
    const sent = relative.filter(isKnown);
    const skipped = relative.filter((one) => !isKnown(one)).map(({ path }) => path);
    return { name: proposedName(root), files: sent, skipped, fault: faultOf(sent, skipped) };
  });
}

function rootsOf(paths) {
  const folders = paths.filter((path) => path === CONFIG || path.endsWith(`/${CONFIG}`)).map((path) => path.slice(0, -CONFIG.length));
  const outermost = folders.filter((folder) => !folders.some((other) => other !== folder && folder.startsWith(other)));
  return outermost.length ? outermost.sort() : [commonFolder(paths)];
}

function commonFolder(paths) {
  const [first] = paths[0].split("/");
  return paths[0].includes("/") && paths.every((path) => path.startsWith(`${first}/`)) ? `${first}/` : "";
}

function proposedName(root) {
  const folder = root.split("/").at(-2) ?? "";
  return folder.replaceAll(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 128);
}

function faultOf(sent, skipped) {
  const pickle = skipped.find((path) => PICKLE.test(path));
  const hasWeights = sent.some(({ path }) => path.endsWith(".safetensors"));
  if (!hasWeights && pickle) {
    return `${pickle} is a pickle file, which can run code when it is read. Save the adapter with save_pretrained(…, safe_serialization=True).`;
  }
  return sent.length ? "" : "There is no file of an adapter here: wanted are adapter_config.json and adapter_model.safetensors.";
}
