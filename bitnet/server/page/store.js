/* Conversations in this browser's IndexedDB; in memory alone where it has none for us. */

const NAME = "bitnet", STORE = "conversations";
let database = null;
const inMemory = new Map();
const channel = "BroadcastChannel" in window ? new BroadcastChannel("bitnet") : null;

/* Whether they are kept. */
export async function open() {
  database = await new Promise(resolve => {
    try {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(STORE, {keyPath: "id"});
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => resolve(null);
      request.onblocked = () => resolve(null);
    } catch { resolve(null); }
  });
  return database !== null;
}

/* Call f when another tab changed something. */
export function onChange(f) { channel?.addEventListener("message", f); }

/* All of them, the latest first. */
export async function all() {
  const found = database ? await run("readonly", store => store.getAll()) : [...inMemory.values()];
  return found.sort((a, b) => b.updated - a.updated);
}

export async function get(id) {
  return database ? run("readonly", store => store.get(id)) : inMemory.get(id);
}

export async function put(...conversations) {
  if (!database) for (const one of conversations) inMemory.set(one.id, one);
  else await run("readwrite", store => conversations.map(one => store.put(one)).at(-1));
  channel?.postMessage("changed");
}

export async function remove(id) {
  if (!database) inMemory.delete(id);
  else await run("readwrite", store => store.delete(id));
  channel?.postMessage("changed");
}

function run(mode, work) {
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const request = work(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}
