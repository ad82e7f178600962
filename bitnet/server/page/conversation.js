/* A conversation, as it is kept, exported and sent. It knows no element and no request.

   {id, kind, title, named, created, updated} and of kind "chat" {messages, start, drops}, of kind
   "text" {text, written}. messages: [{role, content}], an assistant's also {reasoning, stats,
   reason}. start: the first one, behind a system's, that is still sent. drops: whether the oldest
   are left out by themselves once the context is full. written: where in text each continuation of
   the model begins, the latest last. named: the user gave the title. */

const TITLE_LENGTH = 60; // characters that are taken of the first message

export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map(b => b.toString(16).padStart(2, "0"))
    .join("");
}

export function newChat(system) {
  const messages = system ? [{role: "system", content: system}] : [];
  return {...head("chat"), messages, start: 0, drops: false};
}

export function newText() { return {...head("text"), text: "", written: []}; }

function head(kind) {
  const now = Date.now();
  return {id: newId(), kind, title: "", named: false, created: now, updated: now};
}

/* Whether there is anything to keep. */
export function isEmpty(one) {
  return one.kind === "text" ? !one.text : !one.messages.some(m => m.role !== "system");
}

/* What the list shows, unless the user named it. */
export function titleOf(one) {
  if (one.named) return one.title;
  const text = one.kind === "text" ? one.text
    : one.messages.find(m => m.role === "user")?.content ?? "";
  return text.replace(/\s+/g, " ").trim().slice(0, TITLE_LENGTH) || "Untitled";
}

/* The messages that are sent, from message ``start`` on, as the API has them. */
export function sent(one, start = one.start) {
  return one.messages
    .filter((message, i) => message.role === "system" || i >= start)
    .map(({role, content}) => ({role, content}));
}

/* Where the conversation may be cut: at a user's message, but for the first of those sent. */
export function cuts(one) {
  return one.messages.flatMap((m, i) => m.role === "user" && i > one.start ? [i] : [])
    .filter(i => one.messages.slice(one.start, i).some(m => m.role !== "system"));
}
