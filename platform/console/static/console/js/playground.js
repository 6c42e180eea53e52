// The playground: one conversation with one deployment, its timing, the code that does the same, and where the tokens went.
//
// <form id="ask" data-chat-url data-models-url data-trace-url> with name=model, domain, temperature, top_p, max_tokens, seed, prompt
// #conversation, #code, #xray; every name of a figure is data-figure="first|pace|prompt|output|end"
import { $, $$, el, t, fmt, domainChip, toast, state, percent, csrf } from "./boot.js";
import { streamChat } from "./stream.js";
import { s } from "./charts.js";

const form = $("#ask"), said = $("#conversation"), messages = [];
// The domains of each deployment, by its name: as it serves them.
const everyDomain = JSON.parse(form.dataset.domains || "{}");
const domainsOf = (model) => Object.hasOwn(everyDomain, model) ? everyDomain[model] : [];
let run = null;

const value = (name) => form.elements[name]?.value ?? "";
const figure = (name, text, unit) => { for (const node of $$(`[data-figure="${name}"]`)) node.replaceChildren(text, ...(unit ? [el("span", { class: "unit" }, unit)] : [])); };

function body() {
  const out = { model: value("model"), messages: [...messages], max_tokens: Number(value("max_tokens")) || 128, temperature: Number(value("temperature")), top_p: Number(value("top_p")) };
  if (value("system").trim()) out.messages = [{ role: "system", content: value("system").trim() }, ...out.messages];
  if (value("seed") !== "") out.seed = Number(value("seed"));
  if (value("domain")) out.domain = value("domain");
  return out;
}

function bubble(role, text = "") {
  const words = el("div", { class: "words" }, text), meta = el("p", { class: "quiet small meta" });
  const box = el("li", { class: `turn ${role}` }, el("b", { class: "who" }, role === "user" ? t("You") : value("model")), words, meta);
  $("#nothing-said")?.remove();
  said.append(box);
  box.scrollIntoView({ block: "nearest" });
  return { box, words, meta };
}

async function ask() {
  const prompt = value("prompt").trim();
  if (!prompt || run) return;
  if ($("#send").disabled || !value("model")) { toast(t("Deploy a model first, then it can answer here."), { kind: "caution" }); return; }
  messages.push({ role: "user", content: prompt });
  bubble("user", prompt);
  form.elements.prompt.value = "";
  const answer = bubble("assistant"), sent = body();
  answer.box.setAttribute("aria-busy", "true");
  answer.meta.append(state("busy", t("waiting for the first token")));
  for (const name of ["first", "pace", "prompt", "output", "end"]) figure(name, "—");
  busy(true);
  let text = "", failed = false, showAt = 0;
  run = streamChat(form.dataset.chatUrl, sent, {
    delta(piece, chunk, timing) {
      if (!text) { answer.meta.replaceChildren(state("busy", t("answering"))); figure("first", fmt(timing.firstMs), "ms"); }
      text += piece; answer.words.append(piece);
      if (performance.now() - showAt > 250) { showAt = performance.now(); figure("output", fmt(timing.tokens)); said.parentElement.scrollTop = said.parentElement.scrollHeight; }
    },
    usage(usage) { figure("prompt", fmt(usage.prompt_tokens)); figure("output", fmt(usage.completion_tokens)); },
    done(reason, timing) {
      answer.meta.replaceChildren(...note(sent, reason));
      if (timing.tokensPerSecond) figure("pace", fmt(timing.tokensPerSecond, 1), t("/s"));
      figure("end", ENDS[reason] ? t(ENDS[reason]) : "—");
    },
    error(message) { failed = true; answer.meta.replaceChildren(state("danger", message)); },
  });
  await run.finished;
  run = null;
  answer.box.removeAttribute("aria-busy");
  busy(false);
  if (text) messages.push({ role: "assistant", content: text }); else if (failed) { messages.pop(); form.elements.prompt.value = prompt; }
  showCode();
  form.elements.prompt.focus();
}
const ENDS = { stop: "ended by itself", length: "cut at the limit", stopped: "stopped by you", cancelled: "cancelled" };
function note(sent, reason) {
  const domain = domainsOf(sent.model).find(({ code }) => code === sent.domain);
  return [domain ? domainChip(domain) : el("span", {}, t("no domain named")), el("span", {}, ENDS[reason] ? t(ENDS[reason]) : reason ?? "")];
}
function busy(on) { $("#send").hidden = on; $("#stop").hidden = !on; }

form.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
form.elements.prompt.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); } });
$("#stop").addEventListener("click", () => run?.stop());
$("#clear").addEventListener("click", () => { run?.stop(); messages.length = 0; said.replaceChildren(); form.elements.prompt.focus(); showCode(); });
for (const range of $$('input[type="range"]', form)) {
  const show = () => { const out = $(`output[for="${range.id}"]`); if (out) out.textContent = fmt(Number(range.value), 2); };
  range.addEventListener("input", show); show();
}
for (const link of $$("[data-prompt]")) link.addEventListener("click", () => { form.elements.prompt.value = link.dataset.prompt; if (domainsOf(value("model")).some(({ code }) => code === link.dataset.domain)) form.elements.domain.value = link.dataset.domain; form.elements.prompt.focus(); showCode(); });

// The same request, for those who leave the browser. Text goes in as text: nothing here is markup.
function showCode() {
  const sent = body();
  // A request ends with the person's turn: the answer that it got is no part of it. What is typed would be the next turn.
  if (!value("prompt").trim()) while (sent.messages.at(-1)?.role === "assistant") sent.messages.pop();
  if (!sent.messages.some(({ role }) => role === "user") || value("prompt").trim()) sent.messages.push({ role: "user", content: value("prompt").trim() || t("Hello") });
  const base = `${location.origin}/v1`, { domain, ...plain } = sent, json = JSON.stringify(sent, null, 2);
  $("#code-curl").textContent = `curl ${base}/chat/completions \\\n  -H "Authorization: Bearer $TURNOUT_API_KEY" \\\n  -H "Content-Type: application/json" \\\n  -d '${json.replaceAll("'", "'\\''")}'`;
  const lines = Object.entries(plain).map(([key, one]) => `    ${key}=${python(one)},`).join("\n");
  $("#code-python").textContent = `import os\nfrom openai import OpenAI\n\nclient = OpenAI(base_url="${base}", api_key=os.environ["TURNOUT_API_KEY"])\nstream = client.chat.completions.create(\n${lines}\n    stream=True,${domain ? `\n    extra_body={"domain": ${JSON.stringify(domain)}},` : ""}\n)\nfor chunk in stream:\n    print(chunk.choices[0].delta.content or "", end="", flush=True)\n`;
}
const python = (one) => JSON.stringify(one).replace(/\btrue\b/g, "True").replace(/\bfalse\b/g, "False").replace(/\bnull\b/g, "None");
form.addEventListener("input", showCode);
form.addEventListener("change", showCode);

// A deployment offers its own domains; the one chosen stays when the next has it too.
function offerDomains() {
  const pick = form.elements.domain, chosen = pick.value, offered = domainsOf(value("model"));
  pick.replaceChildren(pick.options[0], ...offered.map(({ code, name }) => el("option", { value: code }, name)));
  pick.value = offered.some(({ code }) => code === chosen) ? chosen : "";
}
form.elements.model.addEventListener("change", offerDomains);

async function fillModels() {
  const pick = form.elements.model;
  try {
    const answer = await fetch(form.dataset.modelsUrl, { credentials: "same-origin", headers: { "X-CSRFToken": csrf() } });
    if (!answer.ok) throw new Error(answer.status);
    const { data } = await answer.json(), chosen = new URLSearchParams(location.search).get("model") || pick.value;
    if (!data.length) return;
    pick.replaceChildren(...data.map(({ id }) => el("option", { value: id, selected: id === chosen }, id)));
  } catch { /* the server's own list stays */ }
  offerDomains();
  showCode();
}

// X-ray: which experts the tokens of the prompt visited, layer by layer.
$("#xray-run")?.addEventListener("click", async () => {
  const prompt = value("prompt").trim() || messages.findLast(({ role }) => role === "user")?.content;
  if (!prompt) { toast(t("Write a prompt first."), { kind: "caution" }); return; }
  $("#xray").replaceChildren(state("busy", t("tracing")));
  const asked = { model: value("model"), messages: [{ role: "user", content: prompt }], domain: value("domain") || null };
  try {
    const answer = await fetch(form.dataset.traceUrl, { method: "POST", credentials: "same-origin", headers: { "Content-Type": "application/json", "X-CSRFToken": csrf() }, body: JSON.stringify(asked) });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error?.message ?? told.detail ?? answer.status);
    drawTrace({ domain: asked.domain, ...told, model: asked.model });
  } catch (problem) { $("#xray").replaceChildren(state("danger", problem.message)); }
});
function drawTrace({ model, tokens, layers, domain }) {
  if (!layers.length) { $("#xray").replaceChildren(el("p", { class: "small quiet" }, t("This version is dense: it has no router to trace."))); return; }
  const experts = layers[0]?.logits?.[0]?.length ?? Math.max(0, ...layers.flatMap((one) => one.ids.flat())) + 1, rowHeight = 20, left = 38, width = 300, names = domainsOf(model).find(({ code }) => code === domain);
  const own = new Set(names?.experts ?? []);
  const words = el("div", { class: "tokens", role: "listbox", "aria-label": t("Tokens of the prompt") }), picture = s("svg", { class: "route", role: "img", "aria-label": t("Experts of the chosen token by layer") }), facts = el("p", { class: "small quiet" });
  const shown = (at) => {
    for (const [i, node] of [...words.children].entries()) node.setAttribute("aria-selected", i === at);
    const column = (width - left) / experts, parts = [];
    for (let e = 0; e < experts; e++) parts.push(s("text", { x: left + (e + 0.5) * column, y: 10, "text-anchor": "middle", class: own.has(e) ? "sel" : null }, `E${e}`));
    layers.forEach((one, row) => {
      const y = 22 + row * rowHeight;
      parts.push(s("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, `L${one.layer}`), s("line", { class: "track", x1: left, x2: width, y1: y, y2: y }));
      for (let e = 0; e < experts; e++) parts.push(s("circle", { class: "lamp0", cx: left + (e + 0.5) * column, cy: y, r: 3 }));
      one.ids[at].forEach((e, k) => parts.push(s("circle", { class: "lamp1", cx: left + (e + 0.5) * column, cy: y, r: 3 + 5 * one.weights[at][k] })));
    });
    picture.setAttribute("viewBox", `0 0 ${width} ${22 + layers.length * rowHeight}`);
    picture.replaceChildren(...parts);
    if (own.size) { const home = layers.reduce((sum, one) => sum + one.ids[at].reduce((part, e, k) => part + (own.has(e) ? one.weights[at][k] : 0), 0), 0) / layers.length; const hits = layers.filter((one) => one.ids[at].some((e) => own.has(e))).length;
      facts.textContent = t("Reaches own experts in {hits} of {layers} layers; {share} of its weight goes to the experts of its domain", { hits, layers: layers.length, share: percent(home) }); }
  };
  tokens.forEach((text, i) => words.append(el("button", { type: "button", role: "option", "aria-selected": "false", on: { click: () => shown(i) } }, text)));
  $("#xray").replaceChildren(words, facts, picture);
  shown(tokens.length - 1);
}

fillModels();
showCode();
