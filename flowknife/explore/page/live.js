// The other engine: the same questions as in engines.js, answered by the model in Python through the page's server.

/** Values as `packed` of Python writes them: typed arrays as base64. */
function sendable(value) {
  if (ArrayBuffer.isView(value)) {
    const kind = value instanceof Uint8Array ? "u1" : value instanceof Float32Array ? "f4" : value instanceof Int32Array ? "i4" : "f8";
    const bytes = new Uint8Array(value.buffer, value.byteOffset, value.byteLength), parts = [];
    for (let i = 0; i < bytes.length; i += 32768) parts.push(String.fromCharCode(...bytes.subarray(i, i + 32768)));
    return { [kind]: btoa(parts.join("")) };
  }
  if (Array.isArray(value)) return value.map(sendable);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, sendable(item)]));
}

const asked = { open: 0, last: 0 }; // questions that the reader waits for

/** Until the reader has waited for nothing for a moment. */
async function resting() {
  while (asked.open || performance.now() - asked.last < 300) await new Promise((done) => setTimeout(done, 50));
}

/** Ask the server that this page came from; `behind` for what the reader does not wait for. */
async function ask(name, given = {}, behind = false) {
  if (!behind) asked.open++;
  try {
    return await answered(name, given);
  } finally {
    if (!behind) { asked.open--; asked.last = performance.now(); }
  }
}

async function answered(name, given) {
  const token = new URLSearchParams(location.search).get("token");
  const headers = { "Content-Type": "application/json", ...(token ? { "X-Token": token } : {}) };
  let reply;
  try {
    reply = await fetch(`/api/${name}`, { method: "POST", headers, body: JSON.stringify(sendable(given)) });
  } catch {
    throw new Error("The server does not answer: start flowknife explore again, and reload this page.");
  }
  const found = await reply.json().catch(() => ({ error: "The server failed at this; its terminal says why." }));
  if (!reply.ok) throw new Error(found.error);
  return unpacked(found);
}

/** An engine whose model is in Python; what needs no model is computed here. */
const live = (Judge) => class extends Judge {
  sample(n, options = {}) { return ask("sample", { n, ...options }); }
  encode(x, n, options = {}) { return ask("encode", { x, n, ...options }); }
  decode(z, n, options = {}) { return ask("decode", { z, n, ...options }); }
  logProb(x, n, options = {}) { return ask("log_prob", { x, n, ...options }); }
  predict(x, n) { return ask("predict", { x, n }); }
  async joint(x, n) {
    const flat = await ask("joint", { x, n }), width = flat.length / n;
    return Array.from({ length: n }, (_, row) => flat.subarray(row * width, (row + 1) * width));
  }
};

/** The engine of a page: in the file, or live. */
function engineOf(page) {
  const [InFile, Judge] = { density: [DensityEngine, RowJudge], classify: [ClassifierEngine, ClassJudge], invert: [PosteriorEngine, ObservationJudge], images: [null, class {}] }[page.job];
  return page.live ? new (live(Judge))(page) : new InFile(page);
}

/**
 * Work that is asked for more often than it can be done, as by a slider: while it is under way only the last request
 * is kept. What it returns waits until nothing is left to do.
 */
function latest(work) {
  let running = null, next = null;
  return (...args) => {
    next = args;
    running ??= (async () => {
      try {
        while (next) {
          const own = next;
          next = null;
          await work(...own);
        }
      } finally { running = null; }
    })();
    return running;
  };
}
