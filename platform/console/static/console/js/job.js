// The page of one job, live: figures, curves, expert load over the run, stations and log.
//
// <section id="job" data-live-url="/ws/jobs/12/" data-steps="600"> and, each optional:
//   [data-kpi="loss|tokens_per_second|max_vio|entropy|mapped_share|progress"] with [data-kpi-spark], [data-kpi-note]
//   data-plan='[{"key": "route", "title": "Tune the router", "steps": 16}…]'   the stages that learn: the axis of the curves
//   svg[data-curve="loss|max_vio|mapped_share|entropy"]      one chart each; data-goal draws a dotted line
//   [data-stage-row="STAGE"] with [data-figure="loss|…"]      the last figures of each stage
//   [data-station="STAGE"] in ol.stations                     done, now, next as the stages come
//   [data-domain-loss="CODE"], svg[data-domain-spark="CODE"]  the loss of one domain, now and on its way
//   #heat with #heat-at                                       expert load of the last step, every layer
//   canvas#history with select#layer and #history-at          expert load by step, one layer
//   #log (role="log") with input#follow                       the last lines
//   data-said='{"resumed": "resumed in stage …"…}', data-operations, data-lists   sentences by code: events carry code and values
//   [data-doing] with [data-doing-words], [data-doing-count]  the part of an operation that is at work
//   [data-live-state]                                         how fresh all this is
// Wire: snapshot {seq, job: {state, stage, progress, …}, events: [event…]}, then events
//   {seq, kind: "stage"|"step"|"log"|"report"|"checkpoint"|"state", payload: {…}, at}. When anything but a step or a line
//   came, the parts [data-part] of the page are fetched afresh: verdict, buttons and report are the server's words.
import { $, $$, el, t, fmt, percent, clock } from "./boot.js";
import { connect, showState } from "./live.js";
import { lines, spark } from "./charts.js";
import { Heat, loads, stops, byteColour, ratioText, cellWords, isLoad, ASLEEP } from "./heat.js";

const root = $("#job");
const CURVES = ["loss", "max_vio", "mapped_share", "entropy", "tokens_per_second"];
const SHOW = { loss: (v) => fmt(v, 3), max_vio: (v) => fmt(v, 2), entropy: (v) => fmt(v, 2), mapped_share: (v) => percent(v), tokens_per_second: (v) => fmt(v), progress: (v) => percent(v) };
const KEEP = 600, LOG_LINES = 400;
let steps = [], order = [], stage = null, dirty = false, charts = new Map(), shape = null;

const clean = () => { steps = []; order = []; stage = null; $("#log")?.replaceChildren(); };

function apply(event) {
  const data = event.payload ?? event;
  if (event.seq != null && !["step", "log"].includes(event.kind)) refresh();
  if (event.kind === "step") step(data);
  else if (event.kind === "stage") enter(data.stage);
  else if (event.kind === "log") line(data, event.at);
  else if (event.kind === "checkpoint") line({ text: t("checkpoint after step {step} of “{stage}”, sha256 {hash}…", { step: fmt(data.step), stage: stageName(data.stage), hash: (data.sha256 ?? "").slice(0, 8) }) }, event.at);
  else if (event.kind === "state") told(data, event.at);
  if (data.progress != null) kpi("progress", data.progress);
  dirty = true;
}

// `shown` is the state that the server's parts were made for; `over` says that the stations are theirs alone.
let shown = root?.dataset.state ?? null, over = false;
const ENDED = ["succeeded", "failed", "cancelled", "quarantined"];
function told(data, at) {
  const attempt = data.attempt ? t("attempt {attempt}", { attempt: data.attempt }) : "";
  line({ text: [t("state: {state}", { state: t(data.state) }), attempt, said(data) ?? (data.reason ? t(data.reason) : "")].filter(Boolean).join(" · ") }, at);
}

// Words, buttons and tables are the server's: after a change those parts are fetched and put in place, once for many.
let due = 0, turn = 0;
function refresh() { clearTimeout(due); due = setTimeout(fetchParts, 250); }
async function fetchParts() {
  const mine = ++turn;
  const reply = await fetch(location.href, { credentials: "same-origin" }).catch(() => null);
  if (!reply?.ok) return;
  const text = await reply.text();
  // A slow answer must not undo a later one.
  if (mine !== turn) return;
  const page = new DOMParser().parseFromString(text, "text/html"), html = (node) => node.innerHTML.replace(/name="csrfmiddlewaretoken" value="[^"]*"/g, "");
  for (const part of $$("[data-part]")) {
    const fresh = page.querySelector(`[data-part="${part.dataset.part}"]`);
    // What has not changed is left alone, so that focus and an open menu stay where they are.
    if (fresh && html(fresh) !== html(part)) part.replaceChildren(...fresh.childNodes);
  }
  if (over) settle(page);
}

// What this script wrote while the job ran is the server's to say once it has ended: how far it came, and headings that
// no longer speak of now.
const SETTLED = ['[data-kpi="progress"]', '[data-kpi-note="progress"]', "#domain-loss-title > span", "#heat-title > span"];
function settle(page) {
  for (const which of SETTLED) { const fresh = page.querySelector(which); if (fresh) for (const node of $$(which)) node.textContent = fresh.textContent; }
}

function step(data) {
  if (data.stage && data.stage !== stage) enter(data.stage);
  // Preparation has steps, but nothing to draw.
  if ("part" in data) doing(data);
  if (!("loss" in data)) { note(data); return; }
  const heat = data.heat, cells = heat ? loads(heat.counts.flat(), heat.layers.length, heat.num_experts) : null;
  if (heat && (!shape || shape.layers.length !== heat.layers.length)) { shape = { layers: heat.layers, experts: heat.num_experts }; layerChoices(); }
  // After a restart steps come again: the later run is the one that counts.
  while (steps.length && steps.at(-1).stage === data.stage && steps.at(-1).step >= data.step) steps.pop();
  steps.push({ ...data, heat: null, cells });
  if (steps.length > KEEP) thin();
}
// Older points give way evenly, so that the whole run stays in view.
function thin() { const recent = steps.slice(-KEEP / 4); steps = [...steps.slice(0, -KEEP / 4).filter((_, i) => i % 2 === 0), ...recent]; }

function enter(name) {
  if (!name) return;
  if (over) { stage = name; return; }
  if (name !== stage) for (const node of $$('[data-kpi-note="progress"]')) node.textContent = stageName(name);
  stage = name;
  const all = $$("[data-station]", root.closest("main")), at = all.findIndex((node) => node.dataset.station === name);
  if (at < 0) return;
  all.forEach((node, i) => { node.classList.toggle("done", i < at); if (i === at) node.setAttribute("aria-current", "step"); else node.removeAttribute("aria-current"); });
}
// Steps without figures prepare a stage; they have a counter of their own, so that nobody takes them for its steps.
const isPreparation = (one) => !("loss" in one) && !("part" in one);
function note(one) {
  const values = { stage: stageName(one.stage), step: fmt(one.step), of: fmt(one.of) };
  const words = isPreparation(one) ? t("{stage}: windows prepared {step} / {of}", values) : `${values.stage} ${values.step} / ${values.of}`;
  if (!over) for (const node of $$('[data-kpi-note="progress"]')) node.textContent = words;
}
// A part of an operation: its words are the server's, its count is the run's.
function doing(one) {
  const box = $("[data-doing]");
  if (!box || over) return;
  box.hidden = false;
  $("[data-doing-words]", box).textContent = JSON.parse(box.dataset.words)[one.part] ?? one.part;
  $("[data-doing-count]", box).textContent = `${fmt(one.step)} / ${fmt(one.of)}`;
  $("progress", box).value = one.of ? one.step / one.of : 0;
}
function kpi(key, value) { for (const node of $$(`[data-kpi="${key}"]`)) node.textContent = SHOW[key](value); for (const bar of $$(`progress[data-progress]`)) if (key === "progress") bar.value = value; }

// A sentence that carries its code is said in the words of this page; a value may be a sentence itself.
const sentences = JSON.parse(root?.dataset.said ?? "{}"), operations = JSON.parse(root?.dataset.operations ?? "{}");
const lists = JSON.parse(root?.dataset.lists ?? "[]"), comma = document.documentElement.lang.startsWith("zh") ? "、" : ", ";
function said({ code, values = {} }) {
  if (!sentences[code]) return null;
  const word = (name) => { const value = values[name]; return name === "stage" ? stageName(value) : name === "operation" ? operations[value] ?? value : typeof value === "object" ? said(value) : lists.includes(name) ? String(value).split(", ").join(comma) : value; };
  return sentences[code].replace(/\{(\w+)\}/g, (whole, name) => word(name) ?? whole);
}
function line({ level = "info", text = "", code, values }, at) {
  const log = $("#log");
  if (!log) return;
  const kind = { warning: "w", error: "e" }[level];
  log.append(el("span", { class: "t" }, at ? `${clock(new Date(at))} ` : ""), el("span", { class: kind }, `${said({ code, values }) ?? text}\n`));
  while (log.childNodes.length > 2 * LOG_LINES) log.firstChild.remove();
}

// The control is a yardstick: it is drawn as a curve, but its figures must not pass for those of the model.
const isOwn = (one) => !/control/.test(one.stage ?? "");
// The run's own axis: the stages that learn, one after the other. What measures counts windows, and has no place on it.
const plan = JSON.parse(root?.dataset.plan ?? "[]"), total = plan.reduce((sum, one) => sum + one.steps, 0);
const before = (key) => { const i = plan.findIndex((one) => one.key === key); return i < 0 ? null : plan.slice(0, i).reduce((sum, one) => sum + one.steps, 0); };
const runStep = (one) => { const from = before(one.stage); return from == null ? null : from + one.step; };
const learns = (one) => plan.some(({ key }) => key === one.stage);
// Figures that stand side by side are of one stage: the last that speaks for the model.
function speaking() { const last = steps.findLast(isOwn); return last ? steps.filter((one) => one.stage === last.stage) : []; }

function paint() {
  if (!dirty || document.hidden) return;
  dirty = false;
  const last = steps.at(-1), own = speaking();
  if (last) {
    const spoken = stageName(own.at(-1)?.stage);
    for (const key of CURVES) {
      const values = own.map((one) => one[key]).filter((v) => v != null);
      if (own.length) for (const node of $$(`[data-kpi="${key}"]`)) node.textContent = values.length ? SHOW[key](values.at(-1)) : "—";
      for (const node of $$(`[data-kpi-note="${key}"], .of-stage .plate small`)) if (spoken) node.textContent = spoken;
      for (const svg of $$(`[data-kpi-spark="${key}"]`)) spark(svg, own.every(learns) ? values.slice(-60) : []);
    }
    byStage();
    for (const svg of $$("[data-curve]")) curve(svg);
    byDomain();
    board();
    if (last.stage === stage) note(last);
    history();
  }
  const log = $("#log");
  if (log && ($("#follow")?.checked ?? true)) log.scrollTop = log.scrollHeight;
}

function byDomain() {
  for (const node of $$("[data-domain-loss]")) {
    const code = node.dataset.domainLoss, own = speaking(), values = own.map((one) => one.loss_by_domain?.[code]).filter((v) => v != null);
    node.textContent = values.length ? fmt(values.at(-1), 3) : "—";
    // What a measurement has so far is a mean that settles, not a course.
    for (const svg of $$(`[data-domain-spark="${CSS.escape(code)}"]`)) spark(svg, own.every(learns) ? values.slice(-60) : []);
  }
}
// A stage that goes on writes its row itself; what is done, the server has written.
function byStage() {
  const last = steps.at(-1), row = last && $(`[data-stage-row="${CSS.escape(last.stage ?? "")}"]`);
  if (!row) return;
  for (const cell of $$("[data-figure]", row)) { const key = cell.dataset.figure; cell.textContent = key === "done" ? `${fmt(last.step)} / ${fmt(last.of)}` : last[key] == null || cell.hasAttribute("data-none") ? "—" : SHOW[key](last[key]); }
}
let heat = null;
function board() {
  const host = $("#heat"), last = steps.findLast((one) => one.cells && isOwn(one));
  if (!host || !last || !shape) return;
  heat ??= new Heat(host, { layers: shape.layers, experts: shape.experts, height: 181, onPick: (cell) => { const place = $("#heat-at"); if (cell.said && place) place.textContent = cellWords(cell); } });
  heat.show(last.cells);
}

// One line per stage, placed on the steps of the whole run; flags carry the stage's number, a list beside them its name.
function curve(svg) {
  const key = svg.dataset.curve, known = steps.filter((one) => one[key] != null && runStep(one) != null);
  if (!total) return;
  const values = [], at = [];
  known.forEach((one, i) => {
    if (i && one.stage !== known[i - 1].stage) { values.push(null); at.push(0); }
    values.push(one[key]); at.push(runStep(one) / total);
  });
  const marks = plan.map((one, i) => ({ at: before(one.key) / total, label: one.title, short: String(i + 1) }));
  const goal = svg.dataset.goal ? Number(svg.dataset.goal) : null, finite = values.filter((v) => v != null);
  const options = { series: [{ values, at, kind: "a" }], fair: goal, marks, labels: ["0", t("step {step}", { step: fmt(total) })], left: 40, ...(key === "mapped_share" ? { min: 0, max: 1 } : key === "max_vio" ? { min: 0, max: Math.max(1, ...finite, goal ?? 0) } : {}) };
  if (charts.has(svg)) charts.get(svg).update(options); else charts.set(svg, lines(svg, options));
}
const stepName = (one) => t("step {step}", { step: fmt(runStep(one) ?? one.step) });
const stageName = (name) => $(`[data-station="${CSS.escape(name ?? "")}"] b`)?.textContent ?? name ?? "";

function layerChoices() {
  const pick = $("#layer");
  if (!pick) return;
  pick.replaceChildren(...shape.layers.map((layer, i) => el("option", { value: i, selected: i === Math.floor(shape.layers.length / 2) }, `L${layer}`)));
}
function history() {
  const canvas = $("#history"), shown = steps.filter((one) => one.cells && isOwn(one) && runStep(one) != null);
  if (!canvas || !shape || !shown.length) return;
  const layer = Number($("#layer")?.value ?? 0), { experts } = shape, scale = stops("heat"), style = getComputedStyle(document.documentElement), ink = (name) => style.getPropertyValue(name).trim();
  const box = canvas.getBoundingClientRect(), ratio = devicePixelRatio || 1, ctx = canvas.getContext("2d");
  if (!box.width) return;
  canvas.width = box.width * ratio; canvas.height = box.height * ratio; ctx.scale(ratio, ratio);
  const left = 34, top = 5, bottom = 18, width = (box.width - left) / Math.max(shown.length, 24), height = Math.floor((box.height - bottom - top) / experts);
  const parted = [];
  shown.forEach(({ cells }, i) => {
    if (i && shown[i].stage !== shown[i - 1].stage) parted.push(left + i * width);
    for (let e = 0; e < experts; e++) {
      const byte = cells[layer * experts + e];
      if (!isLoad(byte)) continue;
      ctx.fillStyle = byte === ASLEEP ? ink("--heat-dead") : `rgb(${byteColour(scale, byte).join(" ")})`;
      ctx.fillRect(left + i * width, top + e * height, width + 0.5, height - 1);
      if (byte === ASLEEP) { ctx.strokeStyle = ink("--heat-dead-ring"); ctx.strokeRect(left + i * width + 0.5, top + e * height + 0.5, Math.max(1, width - 1), height - 2); }
    }
  });
  // A new stage begins here.
  ctx.fillStyle = ink("--ink");
  for (const x of parted) ctx.fillRect(x - 1, top - 3, 2, experts * height + 6);
  ctx.fillStyle = ink("--ink-3"); ctx.font = `${ink("--text-1")} ${ink("--font")}`; ctx.textBaseline = "middle"; ctx.textAlign = "right";
  const every = height >= 14 ? 1 : Math.ceil(14 / height);
  for (let e = 0; e < experts; e += every) ctx.fillText(`E${e}`, left - 7, top + e * height + height / 2);
  ctx.textBaseline = "alphabetic"; ctx.textAlign = "left"; ctx.fillText(stepName(shown[0]), left, box.height - 3);
  ctx.textAlign = "right"; ctx.fillText(stepName(shown.at(-1)), Math.max(left + 120, left + shown.length * width), box.height - 3);
  canvas.onpointermove = (event) => {
    const i = Math.floor((event.clientX - box.left - left) / width), e = Math.floor((event.clientY - canvas.getBoundingClientRect().top - top) / height), byte = shown[i]?.cells[layer * experts + e];
    if (byte != null && isLoad(byte) && e < experts && $("#history-at")) $("#history-at").textContent = t("step {step}, expert {expert}: {ratio}×", { step: fmt(runStep(shown[i])), expert: e, ratio: ratioText(byte) });
  };
}
$("#layer")?.addEventListener("change", history);
addEventListener("themechange", () => { dirty = true; paint(); });
document.addEventListener("visibilitychange", () => { dirty = true; paint(); });

if (root?.dataset.liveUrl) {
  connect(root.dataset.liveUrl, {
    snapshot(data) {
      clean();
      const job = data.job ?? data;
      over = ENDED.includes(job.state);
      for (const event of data.events ?? []) apply(event);
      clearTimeout(due);
      if (job.state !== shown) { refresh(); shown = job.state; }
      if (job.stage) enter(job.stage);
      if (job.progress != null) kpi("progress", job.progress);
      dirty = true; paint();
    },
    event(one) {
      if (one.kind === "state") { shown = one.payload.state; over = ENDED.includes(shown); if (over && $("[data-doing]")) $("[data-doing]").hidden = true; }
      apply(one);
    },
    state: showState,
  });
  // Four paints a second at most; what changes faster cannot be read.
  setInterval(paint, 250);
}
