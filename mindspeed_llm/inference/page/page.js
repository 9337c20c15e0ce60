// The chat page: conversations in localStorage, replies as they come. What a model says becomes text
// nodes and nothing else.

const $ = (id) => document.getElementById(id);
const STORE = "mindspeed-llm.conversations";

let state = load();
let model = null;
let running = null; // AbortController of the reply that is being made
let editing = null; // place of the message that is being edited

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE));
    if (Array.isArray(kept.list) && kept.list.length > 0) return kept;
  } catch {
    // nothing kept, or not by us
  }
  const first = fresh();
  return { list: [first], current: first.id };
}

function fresh() {
  return { id: crypto.getRandomValues(new Uint32Array(2)).join("-"), system: "", messages: [],
    temperature: "", limit: "" };
}

function save() {
  try {
    localStorage.setItem(STORE, JSON.stringify(state));
  } catch (err) {
    tell(`Conversations cannot be kept in this browser: ${err.message}`);
  }
}

const current = () => state.list.find((one) => one.id === state.current) ?? state.list[0];

function nameOf(conversation) {
  const first = conversation.messages.find((one) => one.role === "user");
  return first ? first.content.slice(0, 60) : "New conversation";
}

const tell = (text) => { $("alert").textContent = text; };
const note = (text) => { $("status").textContent = text; };

function element(tag, text, properties = {}) {
  const made = document.createElement(tag);
  if (text) made.append(document.createTextNode(text));
  return Object.assign(made, properties);
}

function button(text, label, action) {
  const made = element("button", text, { type: "button", onclick: action });
  if (label) made.setAttribute("aria-label", label);
  return made;
}

function show() {
  const chosen = current();
  $("conversations").replaceChildren(...state.list.map((one) => {
    const item = document.createElement("li");
    const open = button(nameOf(one), "", () => choose(one.id));
    if (one === chosen) open.setAttribute("aria-current", "true");
    item.append(open, button("\u00d7", `Delete conversation: ${nameOf(one)}`, () => remove(one.id)));
    return item;
  }));
  $("title").textContent = nameOf(chosen);
  document.title = `${nameOf(chosen)} \u2013 MindSpeed-LLM chat`;
  $("system").value = chosen.system;
  $("temperature").value = chosen.temperature;
  $("limit").value = chosen.limit;
  $("log").replaceChildren(...chosen.messages.map(article));
  $("log").scrollTop = $("log").scrollHeight;
  $("stop").hidden = running === null;
  $("send").disabled = running !== null;
}

function article(message, at) {
  const isUser = message.role === "user";
  const who = isUser ? "You" : "Model";
  const made = element("article", "", { className: message.role });
  made.setAttribute("aria-label", `${who}, message ${at + 1}`);
  made.append(element("h2", who));
  if (editing === at) {
    made.append(editor(message, at));
    return made;
  }
  made.append(element("p", message.content));
  const actions = element("div", "", { className: "actions" });
  const isLast = at === current().messages.length - 1;
  if (running === null) {
    if (isUser) actions.append(button("Edit", `Edit message ${at + 1}`, () => edit(at)));
    if (isLast) actions.append(button(isUser ? "Answer" : "Regenerate", "", regenerate));
    made.append(actions);
  }
  return made;
}

function editor(message, at) {
  const box = document.createElement("div");
  const field = element("textarea", "", { value: message.content, rows: 3, id: "edited" });
  field.setAttribute("aria-label", `Message ${at + 1}, edited`);
  const keep = () => {
    const text = field.value.trim();
    if (!text) return;
    editing = null;
    const conversation = current();
    conversation.messages.length = at;
    conversation.messages.push({ role: "user", content: text });
    answer();
  };
  const leave = () => { editing = null; show(); $("message").focus(); };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); leave(); }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      keep();
    }
  });
  const actions = element("div", "", { className: "actions" });
  actions.append(button("Send again", "", keep), button("Cancel", "", leave));
  box.append(field, actions);
  return box;
}

function edit(at) {
  editing = at;
  show();
  $("edited").focus();
}

function choose(id) {
  stop();
  editing = null;
  state.current = id;
  tell("");
  note("");
  save();
  show();
  $("message").focus();
}

function remove(id) {
  if (!confirm("Delete this conversation?")) return;
  if (id === state.current) stop();
  state.list = state.list.filter((one) => one.id !== id);
  if (state.list.length === 0) state.list.push(fresh());
  choose(state.list.some((one) => one.id === state.current) ? state.current : state.list[0].id);
}

function stop() {
  running?.abort();
}

function regenerate() {
  const { messages } = current();
  if (messages.at(-1)?.role === "assistant") messages.pop();
  answer();
}

function headers() {
  const token = $("token").value.trim();
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function failed(response) {
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // not one of ours
  }
  if (response.status === 401) {
    $("settings").open = true;
    $("token").focus();
  }
  return new Error(message);
}

async function answer() {
  stop();
  const own = new AbortController();
  const conversation = current();
  const asked = conversation.messages.map(({ role, content }) => ({ role, content }));
  if (conversation.system) asked.unshift({ role: "system", content: conversation.system });
  const reply = { role: "assistant", content: "" };
  conversation.messages.push(reply);
  running = own;
  tell("");
  note("The model is answering.");
  save();
  show();
  $("log").setAttribute("aria-busy", "true"); // read out when it is whole
  try {
    const body = { messages: asked, stream: true, stream_options: { include_usage: true } };
    if (model) body.model = model;
    if (conversation.temperature !== "") body.temperature = Number(conversation.temperature);
    if (conversation.limit !== "") body.max_tokens = Number(conversation.limit);
    const response = await fetch("v1/chat/completions", {
      method: "POST", signal: own.signal, body: JSON.stringify(body),
      headers: { "Content-Type": "application/json", ...headers() },
    });
    if (!response.ok) throw await failed(response);
    await read(response, (row) => take(conversation, reply, row));
  } catch (err) {
    if (own.signal.aborted) note("Stopped.");
    else { tell(err.message); note(""); }
  } finally {
    if (running === own) running = null;
    if (!reply.content) conversation.messages = conversation.messages.filter((m) => m !== reply);
    $("log").removeAttribute("aria-busy");
    save();
    show();
  }
}

async function read(response, each) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data !== "[DONE]") each(JSON.parse(data));
    }
  }
}

function take(conversation, reply, row) {
  if (row.error) throw new Error(row.error.message);
  const piece = row.choices[0]?.delta?.content;
  if (row.choices[0]?.finish_reason === "length") note("The reply was cut at its longest.");
  else if (row.usage) {
    const cached = row.usage.prompt_tokens_details.cached_tokens;
    if ($("status").textContent.startsWith("The model is")) {
      note(`${row.usage.completion_tokens} tokens; prompt ${row.usage.prompt_tokens}, ` +
        `${cached} of them cached.`);
    }
  }
  if (!piece) return;
  reply.content += piece;
  if (current() !== conversation) return;
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const shown = log.lastElementChild?.querySelector("p");
  if (shown) shown.append(document.createTextNode(piece));
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function send() {
  const text = $("message").value.trim();
  if (!text || running !== null) return;
  const { messages } = current();
  if (messages.at(-1)?.role === "user") messages.pop(); // never answered: asked anew
  messages.push({ role: "user", content: text });
  $("message").value = "";
  answer();
}

async function name() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) throw await failed(response);
    model = (await response.json()).data[0].id;
    $("model").textContent = model;
    tell("");
  } catch (err) {
    tell(err.message);
  }
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
$("stop").addEventListener("click", () => { stop(); $("message").focus(); });
$("new").addEventListener("click", () => {
  const made = fresh();
  state.list.unshift(made);
  choose(made.id);
});
for (const field of ["system", "temperature", "limit"]) {
  $(field).addEventListener("input", () => { current()[field] = $(field).value; save(); });
}
$("token").value = sessionStorage.getItem(`${STORE}.token`) ?? "";
$("token").addEventListener("change", () => {
  sessionStorage.setItem(`${STORE}.token`, $("token").value);
  name();
});

show();
name();
$("message").focus();
