/* Requests to the server that this page is of, and to no other. */

/* What went wrong. kind: "gone" no answer; "key" none or a wrong one; "full" the context; "busy"
   another try makes sense; "cut" the stream ended early; "refused" the rest. */
export class Problem extends Error {
  constructor(kind, message, {retryAfter = 0} = {}) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

const watchers = {gone: () => {}, key: async () => null};

/* gone(isGone): is told after each request. key(problem): asks for one; whether there is a new. */
export function watch(functions) { Object.assign(watchers, functions); }

export const key = {
  get value() { return sessionStorage.getItem("bitnet.key") ?? ""; },
  set value(text) { sessionStorage.setItem("bitnet.key", text); },
};

/* The response to a request, whose status is below 400. body: for JSON; none is a GET. Problem. */
export async function call(path, body, signal) {
  for (;;) {
    const headers = {"content-type": "application/json"};
    if (key.value) headers.authorization = `Bearer ${key.value}`;
    const options = body ? {method: "POST", body: JSON.stringify(body)} : {};
    let response;
    try { response = await fetch(path, {...options, headers, signal}); }
    catch (error) {
      if (error.name === "AbortError") throw error;
      watchers.gone(true);
      throw new Problem("gone", "The server does not answer.");
    }
    watchers.gone(false);
    if (response.ok) return response;
    const problem = await read(response);
    if (problem.kind !== "key" || !await watchers.key(problem)) throw problem;
  }
}

export async function json(path, body, signal) { return (await call(path, body, signal)).json(); }

/* What a refusal says; a proxy's is not in JSON. */
async function read(response) {
  let error;
  try { ({error} = await response.json()); } catch { /* below */ }
  const text = error?.message ?? `${response.status} ${response.statusText}`.trim();
  const retryAfter = Number(response.headers.get("retry-after")) || 0;
  return new Problem(kindOf(response.status, error?.code), text, {retryAfter});
}

function kindOf(status, code) {
  if (status === 401) return "key";
  if (code === "context_length_exceeded") return "full";
  if (status === 429 || status === 503) return "busy";
  return status === 502 || status === 504 ? "gone" : "refused";
}

/* The chunks of a stream. Problem where it ends before its end. */
export async function* stream(path, body, signal) {
  const response = await call(path, {...body, stream: true,
    stream_options: {include_usage: true}}, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const {done, value} = await reader.read().catch(error => {
      if (error.name === "AbortError") throw error;
      return {done: true};
    });
    if (done) throw new Problem("cut", "The connection ended in the middle of the answer.");
    const lines = (held + value).split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (line.startsWith("data: ")) yield checked(JSON.parse(line.slice(6)));
    }
  }
}

function checked(chunk) {
  const {error} = chunk;
  if (error) throw new Problem(kindOf(error.type === "server_error" ? 500 : 400, error.code),
    error.message);
  return chunk;
}

/* {name, context, template}: of the model that writes; template null where it has none. */
export async function about() {
  const [models, tokenizer] = await Promise.all([json("v1/models"), json("tokenizer_info")]);
  const {id, max_model_len: context} = models.data[0];
  return {name: id, context, template: tokenizer.chat_template};
}

/* How many tokens {prompt} or {messages} have; Infinity where they are too many to count. */
export async function count(what) {
  try { return (await json("tokenize", what)).count; }
  catch (problem) {
    if (problem.kind === "refused" && /tokens or more/.test(problem.message)) return Infinity;
    throw problem;
  }
}
