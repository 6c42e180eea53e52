// The live board. Frames come four times a second; the canvas follows each, words and lists once a second.
import { $, $$, el, t, fmt, percent, domainChip } from "/static/console/js/boot.js";
import { connect, showState, counts32 } from "/static/console/js/live.js";
import { Heat, loads as quantised, cellWords, tableButton, stops, colourAt } from "/static/console/js/heat.js";
import { lines, bars, spark } from "/static/console/js/charts.js";
import { ALL, fromFrame, fromRouting, pick, sum, maxVioByLayer, mean, cells, shares, mostlyFrom } from "./picture.js";

const board = $("#board"), read = (name) => JSON.parse(board.dataset[name]);
const domains = read("domains"), history = read("history"), marks = read("marks");
const known = Object.fromEntries(domains.map((one) => [one.code, one]));
const view = { phase: "", domain: ALL, window: "live", paused: false };
const HOT = 2, HOME = 0.6, SHOWN = 5, SPARK = 40, HISTORY_STEP_S = 10, HISTORY_S = 3600;
let picture = null, frame = null, now = { kind: "connecting", since: new Date() }, offset = null;

const chip = (code) => domainChip(known[code] ?? { code: "–", name: t("none named"), colour: 0 });
const heat = new Heat($("#heat"), { layers: [], experts: 0, height: 330, onPick(cell) {
  showCell();
  // Spoken only when somebody moved: a value that changes by itself must not talk.
  if (cell.said) $("#cell-said").textContent = cellWords(cell);
} });
tableButton($("#as-table"), heat);

function show() {
  if (!picture) return;
  const { layers, num_experts: experts } = picture, loads = pick(picture, view.phase, view.domain);
  const same = heat.experts === experts && heat.layers.length === layers.length && heat.layers.every((layer, i) => layer === layers[i]);
  if (!same) { heat.reshape({ layers, experts }); $("#heat-size").textContent = experts ? t("{layers} layers × {experts} experts", { layers: layers.length, experts }) : ""; }
  $("#heat").hidden = !experts; $("#heat-empty").hidden = Boolean(experts);
  if (!experts) $("#heat-empty").textContent = sum(picture.counts) ? "" : picture.version ? t("No token came in the last minute.") : "";
  else { frame = quantised(loads, layers.length, experts); heat.show(frame); }
  return loads;
}

// -- words, once a second ---------------------------------------------------------------------
function showWords() {
  if (!picture) return;
  const { layers, num_experts: experts } = picture, loads = pick(picture, view.phase, view.domain), found = cells(loads, layers, experts);
  showVerdict(loads, found);
  showLists(found);
  showCell();
  showFlow();
  showBalance(loads, found);
  showKpis();
}
function say(state, strong, rest = "") {
  const lamp = $("#verdict .lamp"), [first, second] = [$("#verdict b"), $("#verdict p span")];
  // Only when the words change: the line is announced to those who listen.
  if (lamp.dataset.state !== state) lamp.dataset.state = state;
  if (first.textContent !== strong) first.textContent = strong;
  if (second.textContent !== rest) second.textContent = rest;
}
function showVerdict(loads, found) {
  if (!picture.num_experts && picture.version && picture.output_tokens) return say("off", t("This version has no experts: there is no routing to watch."));
  if (!sum(picture.counts)) return say("off", t("No token came in the last minute."), t("Send a request, and the experts light up."));
  if (view.domain !== ALL && known[view.domain]) {
    const name = known[view.domain].name, home = atHome(view.domain);
    if (home == null) return say("off", t("No token of {name} came in the last minute.", { name }));
    return say(home < HOME ? "caution" : "ok", t("{name} keeps {share} of its tokens at its own experts.", { name, share: percent(home) }));
  }
  if (!found.length) return say("off", t("No token came in the last minute."));
  const { layer, expert, ratio } = found[0], asleep = found.filter(({ load }) => !load).length, words = { layer, expert, ratio: fmt(ratio, 1), count: fmt(asleep) };
  if (ratio > HOT) return say("caution", asleep ? t("Layer {layer}, expert {expert} carries {ratio}× its fair share; {count} experts are asleep.", words) : t("Layer {layer}, expert {expert} carries {ratio}× its fair share.", words));
  return say(asleep ? "caution" : "ok", asleep ? t("No expert carries more than {ratio}× its fair share, but {count} are asleep.", words) : t("The load is level: no expert carries more than {ratio}× its fair share.", words));
}
function atHome(code) {
  const found = shares(picture, view.phase, code), own = known[code]?.experts ?? [];
  return found && own.length ? own.reduce((total, expert) => total + (found.shares[expert] ?? 0), 0) : null;
}
function row({ layer, index, expert, load, ratio }, note) {
  const dot = el("i", { class: "swatch" }), name = el("button", { class: "berth", type: "button", on: { click: () => { heat.pick([index, expert]); $("#heat").focus(); } } }, `L${layer}·E${expert}`);
  dot.style.background = frame ? heat.css[frame[index * picture.num_experts + expert]] : "";
  return el("li", {}, dot, name, note ?? null, el("span", { class: "over" }, load ? `${fmt(ratio, 1)}×` : "0"));
}
function showLists(found) {
  const hot = found.filter(({ ratio }) => ratio > HOT), cold = found.filter(({ load }) => !load);
  const most = ({ index, expert }) => { const from = mostlyFrom(picture, view.phase, index, expert); return from ? chip(from[0]) : null; };
  fill("#hot", hot, (one) => row(one, most(one)), t("No expert is over 2×."));
  fill("#cold", cold, (one) => row(one, el("span", { class: "quiet small" }, view.window === "live" ? t("no token in the last minute") : t("no token in this window"))), t("Every expert got tokens."));
}
function fill(place, found, make, nothing) {
  const items = found.slice(0, SHOWN).map(make);
  if (!items.length) items.push(el("li", { class: "quiet small" }, sum(picture.counts) ? nothing : "—"));
  if (found.length > SHOWN) items.push(el("li", { class: "quiet small" }, t("and {count} more", { count: fmt(found.length - SHOWN) })));
  $(place).replaceChildren(...items);
}
function showCell() {
  if (!heat.cursor || !picture) return;
  const [index, expert] = heat.cursor, experts = picture.num_experts, at = index * experts + expert, loads = pick(picture, view.phase, view.domain), fair = sum(loads.subarray(index * experts, (index + 1) * experts)) / experts;
  $("#cell-id").textContent = `L${picture.layers[index]}·E${expert}`;
  const from = mostlyFrom(picture, view.phase, index, expert), facts = [
    [t("Load"), fair ? t("{ratio}× its fair share", { ratio: fmt(loads[at] / fair, 2) }) : "—"],
    [t("Tokens routed here"), fmt(loads[at])],
    [t("Of its layer"), fair ? percent(loads[at] / (fair * experts), 1) : "—"],
    [t("Mostly from"), from ? el("span", {}, chip(from[0]), ` ${percent(from[1])}`) : "—"],
    [t("Reading prompts"), fmt(pick(picture, "prefill", view.domain)[at])],
    [t("Writing answers"), fmt(pick(picture, "decode", view.domain)[at])],
  ];
  $("#cell").replaceChildren(el("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
}
function showFlow() {
  const experts = picture.num_experts, scale = stops("seq"), dark = document.documentElement.dataset.theme === "dark" || (document.documentElement.dataset.theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  if (!experts) { $("#flow").replaceChildren(); return; }
  const heads = [t("Domain"), ...Array.from({ length: experts }, (_, e) => `E${e}`), t("At home"), t("Routed")];
  const codes = [...domains.map(({ code }) => code), ""].filter((code) => code || picture.domains.includes(""));
  const body = codes.map((code) => {
    const found = shares(picture, view.phase, code), own = new Set(known[code]?.experts ?? []);
    const boxes = Array.from({ length: experts }, (_, expert) => {
      const share = found?.shares[expert] ?? null, text = el("span", {}, share == null ? "—" : percent(share));
      if (share != null) { text.style.background = `rgb(${colourAt(scale, share * 10).join(" ")})`; text.style.color = (share > 0.55) !== dark ? "#fff" : "#10201b"; }
      return el("td", { class: own.has(expert) ? "home" : null, title: own.has(expert) ? t("its own expert") : null }, text);
    });
    return el("tr", {}, el("th", { scope: "row" }, chip(code)), ...boxes, el("td", { class: "plain" }, own.size ? percent(atHome(code)) : "—"), el("td", { class: "plain" }, fmt(found?.total ?? 0)));
  });
  $("#flow").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ...heads.map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, ...body)));
}
function showBalance(loads) {
  const { layers, num_experts: experts } = picture;
  if (!experts) return;
  const values = maxVioByLayer(loads, layers.length, experts).map((one) => one ?? 0);
  bars($("#balance"), { values, names: layers.map((layer) => `L${layer}`), hot: 1, max: Math.max(1, ...values) });
}

// -- key figures ------------------------------------------------------------------------------
const sparks = {};
function kpi(name, value, digits, note) {
  const place = $(`[data-kpi="${name}"]`), past = (sparks[name] ??= []);
  place.textContent = fmt(value, digits);
  if (note != null) $(`[data-kpi-note="${name}"]`).textContent = note;
  if (view.window !== "live") return;
  past.push(value ?? NaN); if (past.length > SPARK) past.shift();
  const line = $(`[data-kpi-spark="${name}"]`);
  if (line && past.filter(Number.isFinite).length > 1) spark(line, past);
}
function showKpis() {
  const { gauges = {}, rate, first_token: first, inter_token: inter } = picture, loads = pick(picture, "", ALL), vios = maxVioByLayer(loads, picture.layers.length, picture.num_experts);
  if (rate) { kpi("output", rate.output, rate.output < 100 ? 1 : 0, t("prompt {value} /s", { value: fmt(rate.prompt, rate.prompt < 100 ? 1 : 0) })); kpi("running", gauges.running ?? 0, 0, t("{count} waiting", { count: fmt(gauges.waiting ?? 0) })); kpi("cache", gauges.kv_total ? (gauges.kv_used / gauges.kv_total) * 100 : null, 1, t("{used} of {total} tokens", { used: fmt(gauges.kv_used ?? 0), total: fmt(gauges.kv_total ?? 0) })); }
  if (first) kpi("first", first.p95, 0, first.count ? t("median {value} ms", { value: fmt(first.p50) }) : "");
  if (inter) kpi("inter", inter.p95, 1, inter.count ? t("median {value} ms", { value: fmt(inter.p50, 1) }) : "");
  const worst = vios.reduce((best, one, i) => (one != null && (best < 0 || one > vios[best]) ? i : best), -1);
  kpi("vio", mean(vios), 2, worst < 0 ? t("mean of the layers") : t("worst: L{layer} at {value}", { layer: picture.layers[worst], value: fmt(vios[worst], 1) }));
  const prompt = picture.prompt_tokens + picture.reused_tokens;
  kpi("reuse", prompt ? (picture.reused_tokens / prompt) * 100 : null, 0, t("{count} prompt tokens", { count: fmt(prompt) }));
}

// -- the last hour ----------------------------------------------------------------------------
const points = new Map(history.series.map((one) => [one.t_s, one]));
let line = null, buckets = { start: 0, output: 0, vios: [] };
function note(told) {
  const start = Math.floor(told.t_ms / 1000 / HISTORY_STEP_S) * HISTORY_STEP_S;
  if (start !== buckets.start) buckets = { start, rates: [] };
  buckets.rates.push(told.rate.output);
  points.set(start, { t_s: start, output_per_s: sum(Float64Array.from(buckets.rates)) / buckets.rates.length, max_vio: sum(picture.counts) ? told.max_vio : null });
}
function showHistory() {
  const end = Math.floor(Date.now() / 1000 / HISTORY_STEP_S) * HISTORY_STEP_S, count = HISTORY_S / HISTORY_STEP_S, step = Math.max(HISTORY_STEP_S, history.resolution_s);
  const at = (i) => points.get(end - (count - 1 - i) * HISTORY_STEP_S) ?? null, slots = HISTORY_S / step;
  const series = Array.from({ length: slots }, (_, i) => at(Math.floor((i * count) / slots)));
  const rates = series.map((one) => one?.output_per_s ?? 0), vios = series.map((one) => one?.max_vio ?? null), top = Math.max(1, ...rates), worst = Math.max(1, ...vios.filter((one) => one != null));
  const flags = marks.map((one) => ({ at: 1 - (end - one.t_s) / HISTORY_S, label: "" })).filter((one) => one.at > 0 && one.at <= 1).reverse();
  const options = { series: [{ values: rates, kind: "a", area: true }, { values: vios.map((one) => (one == null ? null : (one / worst) * top)), kind: "b" }], min: 0, max: top, ticks: 3, height: 96, labels: [t("{minutes} min ago", { minutes: 60 }), t("{minutes} min ago", { minutes: 30 }), t("now")], marks: flags };
  if (line) line.update(options); else line = lines($("#history"), options);
}

// -- feed -------------------------------------------------------------------------------------
function take(told) {
  if (offset == null) offset = Date.now() - told.t_ms;
  offset = Math.min(offset, Date.now() - told.t_ms);
  const live = fromFrame(told, counts32(told.counts));
  if (view.window === "live") { picture = live; show(); }
  if (told.rate && view.window === "live") note(told);
}
const feed = connect(`/ws/board/${board.dataset.deployment}/`, {
  snapshot: take,
  event: take,
  state(next) { now = next; showState(now, behind()); },
});
// Clocks differ: the quickest frame so far stands for "at once".
function behind() { return picture && offset != null && now.kind === "live" ? Math.max(0, (Date.now() - offset - picture.t_ms) / 1000) : undefined; }

async function fetchWindow() {
  const chosen = view.window;
  if (chosen === "live") return;
  const answer = await fetch(`${board.dataset.routing}?window=${chosen}`, { credentials: "same-origin", headers: { Accept: "application/json" } });
  if (!answer.ok || view.window !== chosen) return;
  const told = fromRouting(await answer.json());
  picture = { ...told, first_token: told.first_token_ms, inter_token: told.inter_token_ms };
  show(); showWords();
}

$("#deployment").addEventListener("change", (event) => location.assign(event.target.value));
$("#phase").addEventListener("choose", ({ detail }) => { view.phase = detail; show(); showWords(); });
$("#domains").addEventListener("choose", ({ detail }) => { view.domain = detail; show(); showWords(); });
$("#window").addEventListener("choose", ({ detail }) => { view.window = detail; if (detail === "live") feed.resume(); else fetchWindow(); });
$("#pause").addEventListener("click", () => {
  view.paused = !view.paused;
  $("#pause span").textContent = view.paused ? t("Resume") : t("Pause");
  if (view.paused) feed.pause(); else feed.resume();
});
document.addEventListener("keydown", (event) => { if (event.key === " " && event.target === document.body) { event.preventDefault(); $("#pause").click(); } });
addEventListener("themechange", () => { if (picture) showWords(); });

showHistory();
let beats = 0;
setInterval(() => {
  if (document.hidden || view.paused) return;
  showWords(); showState(now, behind());
  if (++beats % 5 === 0) { showHistory(); fetchWindow(); }
}, 1000);
new ResizeObserver(() => { if (picture) showBalance(pick(picture, view.phase, view.domain)); }).observe($("#balance").parentElement);
