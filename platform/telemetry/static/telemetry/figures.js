// The key figures of the live board, and its last hour.
import { $, t, fmt } from "/static/console/js/boot.js";
import { lines, spark } from "/static/console/js/charts.js";
import { ALL, maxVioByLayer, mean } from "./picture.js";

const SPARK = 40, STEP_S = 10, HOUR_S = 3600;

const sparks = {};
function kpi(name, value, digits, note) {
  const place = $(`[data-kpi="${name}"]`);
  place.textContent = fmt(value, digits);
  if (note != null) $(`[data-kpi-note="${name}"]`).textContent = note;
}
function trace(name, value) {
  const past = (sparks[name] ??= []), line = $(`[data-kpi-spark="${name}"]`);
  past.push(value ?? NaN); if (past.length > SPARK) past.shift();
  if (line && past.filter(Number.isFinite).length > 1) spark(line, past);
}
const briefly = (value) => fmt(value, value < 100 ? 1 : 0);

// These figures cannot be cut by domain: while one is chosen, they say that they are of all.
const whole = (note, view) => (view.domain === ALL ? note : t("of all domains"));

// What is now: rates and gauges come from the newest frame, whatever window the rest shows.
export function showNow({ rate, gauges = {} }, view) {
  const cache = gauges.kv_total ? (gauges.kv_used / gauges.kv_total) * 100 : null;
  kpi("output", rate.output, rate.output < 100 ? 1 : 0, whole(t("prompt {value} /s", { value: briefly(rate.prompt) }), view));
  kpi("running", gauges.running ?? 0, 0, whole(t("{count} waiting", { count: fmt(gauges.waiting ?? 0) }), view));
  kpi("cache", cache, 1, gauges.kv_total ? t("{used} of {total} tokens", { used: fmt(gauges.kv_used), total: fmt(gauges.kv_total) }) : t("no engine"));
  trace("output", rate.output); trace("running", gauges.running ?? 0); trace("cache", cache);
}
// What the window holds; balance is that of the phase and domain that are chosen.
export function showWindow({ picture, view, loads }) {
  const { first_token: first, inter_token: inter, layers } = picture, vios = maxVioByLayer(loads, layers.length, picture.num_experts);
  kpi("first", first.p95, 0, whole(first.count ? t("median {value} ms", { value: fmt(first.p50) }) : t("none in this window"), view));
  kpi("inter", inter.p95, 1, whole(inter.count ? t("median {value} ms", { value: fmt(inter.p50, 1) }) : t("none in this window"), view));
  const worst = vios.reduce((best, one, i) => (one != null && (best < 0 || one > vios[best]) ? i : best), -1);
  kpi("vio", mean(vios), 2, worst < 0 ? t("mean of the layers") : t("worst: L{layer} at {value}", { layer: layers[worst], value: fmt(vios[worst], 1) }));
  const prompt = picture.prompt_tokens + picture.reused_tokens, reuse = prompt ? (picture.reused_tokens / prompt) * 100 : null;
  kpi("reuse", reuse, 0, whole(t("{count} prompt tokens", { count: fmt(prompt) }), view));
  trace("first", first.p95); trace("inter", inter.p95); trace("vio", mean(vios)); trace("reuse", reuse);
}
export function forgetTraces() { for (const name of ["first", "inter", "vio", "reuse"]) { delete sparks[name]; $(`[data-kpi-spark="${name}"]`)?.replaceChildren(); } }

// The last hour in slots of ten seconds, placed by the server's clock: the page's own may be hours off.
export class History {
  constructor(host, { series, to_s: to, resolution_s: resolution }, marks) {
    Object.assign(this, { host, marks, resolution, endS: to });
    this.points = new Map(series.map((one) => [one.t_s, one]));
    this.slot = { start: 0, rates: [] };
  }
  note({ t_ms: at, rate, max_vio: vio }) {
    const start = Math.floor(at / 1000 / STEP_S) * STEP_S;
    if (start !== this.slot.start) this.slot = { start, rates: [] };
    this.slot.rates.push(rate.output);
    this.points.set(start, { t_s: start, output_per_s: mean(this.slot.rates), max_vio: vio });
    this.endS = Math.max(this.endS, start);
  }
  show(serverMs, view) {
    const last = Math.floor((serverMs == null ? this.endS : serverMs / 1000) / STEP_S) * STEP_S, count = HOUR_S / STEP_S, slots = HOUR_S / Math.max(STEP_S, this.resolution);
    for (const at of this.points.keys()) if (at < last - 2 * HOUR_S) this.points.delete(at);
    const series = Array.from({ length: slots }, (_, i) => this.points.get(last - (count - 1 - Math.floor((i * count) / slots)) * STEP_S) ?? null);
    const rates = series.map((one) => one?.output_per_s ?? 0), vios = series.map((one) => one?.max_vio ?? null), top = Math.max(1, ...rates), worst = Math.max(1, ...vios.filter((one) => one != null));
    const flags = this.marks.map((one) => ({ at: 1 - (last - one.t_s) / HOUR_S, label: "" })).filter((one) => one.at > 0 && one.at <= 1).reverse();
    const options = {
      series: [{ values: rates, kind: "a", area: true }, { values: vios.map((one) => (one == null ? null : (one / worst) * top)), kind: "b" }],
      min: 0, max: top, wanted: 3, height: 96, left: 44, marks: flags,
      labels: [t("{minutes} min ago", { minutes: 60 }), t("{minutes} min ago", { minutes: 30 }), t("now")],
    };
    const note = vios.some((one) => one != null) ? t("tokens/s; dashed: MaxVio, its scale ends at {value}", { value: fmt(worst, 1) }) : t("tokens/s");
    $("#time-title small").textContent = view.domain === ALL ? note : t("all domains: {note}", { note });
    if (this.line) this.line.update(options); else this.line = lines(this.host, options);
  }
}
