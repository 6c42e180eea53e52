// Small SVG charts. All geometry is in attributes, so a strict Content-Security-Policy is content.
//
//   lines(svg, {series: [{values, kind: "a"|"b"|"c", area}], …}) -> {update(options)}   redraws on resize
//   spark(svg, values)        bar(svg, parts, of, limit)        bars(svg, {values, hot})
// From a template, without a script of its own:
//   <svg data-lines='{"series":[{"values":[2.6,2.4],"kind":"a"}],"labels":["0","100"]}' role="img" aria-label="…"></svg>
import { $$, fmt } from "./boot.js";

const NS = "http://www.w3.org/2000/svg";
export function s(tag, attributes = {}, ...children) {
  const node = document.createElementNS(NS, tag);
  for (const [key, value] of Object.entries(attributes)) if (value != null) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const gap = (value) => value == null || !Number.isFinite(value);
// A missing value breaks the line: it is never drawn as zero or bridged.
export function path(points) {
  let text = "";
  points.forEach(([x, y], i) => {
    if (gap(y)) return;
    const alone = gap(points[i - 1]?.[1]);
    text += `${alone ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
    // A point between two gaps still shows: a line of no length with round ends.
    if (alone && gap(points[i + 1]?.[1])) text += "h0";
  });
  return text;
}

export function spark(host, values, width = 52) {
  const known = values.filter((v) => !gap(v));
  if (known.length < 2) { host.replaceChildren(); return; }
  const low = Math.min(...known), high = Math.max(...known), y = (v) => (gap(v) ? NaN : 18 - (16 * (v - low)) / (high - low || 1));
  const points = values.map((v, i) => [(i / (values.length - 1)) * (width - 2), y(v)]), end = points.findLast(([, py]) => !gap(py));
  host.replaceChildren(s("path", { d: path(points) }), s("circle", { cx: end[0].toFixed(1), cy: end[1].toFixed(1), r: 1.8 }));
  host.setAttribute("viewBox", `0 0 ${width} 20`);
  host.setAttribute("class", "spark");
  host.setAttribute("aria-hidden", "true");
}

// Round ticks: 1, 2, 2.5 or 5 times a power of ten.
export function ticksOf(low, high, wanted = 4) {
  const rough = (high - low) / Math.max(1, wanted - 1) || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= rough * 0.999), from = Math.floor(low / step + 1e-9) * step, out = [];
  for (let v = from; v < high + step * 0.999; v += step) out.push(Math.round(v / step) * step);
  if (out.length < 2) out.push(out[0] + step);
  return { values: out, digits: Math.max(0, Math.min(3, -Math.floor(Math.log10(step) + 1e-9) + (String(step / power) === "2.5" ? 1 : 0))) };
}

// series: [{values, kind, area, of: length of the whole axis, at: a place 0..1 for each value}], fair: a reference value,
// marks: [{at: 0..1, label, short: what stands at the flag when it is not the label}]
export function lines(host, options) {
  let now = options;
  const draw = () => {
    const { series, height = 128, min, max, wanted = 4, unit = "", marks = [], labels = [], fair, left = 34 } = now;
    const width = host.clientWidth || host.parentElement.clientWidth;
    if (!width) return;
    const all = series.flatMap((one) => one.values).filter((v) => !gap(v));
    const top = marks.length ? 18 : 6, bottom = height - 16;
    const ticks = ticksOf(min ?? (all.length ? Math.min(...all) : 0), max ?? (all.length ? Math.max(...all) : 1), wanted);
    const low = min ?? ticks.values[0], high = max ?? ticks.values.at(-1);
    const x = (i, n) => left + (n > 1 ? i / (n - 1) : 0) * (width - left - 2), y = (v) => (gap(v) ? NaN : bottom - ((v - low) / (high - low || 1)) * (bottom - top));
    const parts = [];
    for (const [k, value] of ticks.values.entries()) {
      if (value < low - 1e-9 || value > high + 1e-9) continue;
      parts.push(s("line", { class: "axis", x1: left, x2: width, y1: y(value), y2: y(value) }), s("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, fmt(value, ticks.digits) + (k === ticks.values.length - 1 ? unit : "")));
    }
    if (fair != null) parts.push(s("line", { class: "fair", x1: left, x2: width, y1: y(fair), y2: y(fair) }));
    for (const { values, kind, area, of = values.length, at } of series) {
      const points = values.map((v, i) => [at ? left + at[i] * (width - left - 2) : x(i, of), y(v)]), drawn = points.filter(([, py]) => !gap(py));
      if (!drawn.length) continue;
      if (area) parts.push(s("path", { class: "area", d: `${path(drawn)}L${drawn.at(-1)[0].toFixed(1)} ${bottom}L${drawn[0][0].toFixed(1)} ${bottom}Z` }));
      parts.push(s("path", { class: kind, d: path(points) }));
      points.forEach(([px, py], i) => { if (!gap(py) && gap(points[i - 1]?.[1]) && gap(points[i + 1]?.[1])) parts.push(s("circle", { class: `dot ${kind}`, cx: px, cy: py, r: 2.2 })); });
    }
    // A label stands where there is room: right of its flag, else left of it, else only the flag stands.
    const taken = [];
    for (const { at, label, short = label } of marks) {
      const px = left + at * (width - left - 2), w = [...short].reduce((sum, c) => sum + (c > "\u2e80" ? 12 : 6.2), 0);
      const free = (from) => from >= left && from + w <= width && taken.every(([a, b]) => from > b + 8 || from + w < a - 8);
      const from = [px + 7, px - 7 - w].find(free);
      parts.push(s("line", { class: "mark", x1: px, x2: px, y1: 5, y2: bottom }), s("path", { class: "flag", d: `M${px - 3.5} 2h7l-3.5 6z` }, s("title", {}, label)));
      taken.push([px - 4, px + 4]);
      if (from != null) { taken.push([from, from + w]); parts.push(s("text", { x: from > px ? px + 7 : px - 7, y: 10, "text-anchor": from > px ? "start" : "end" }, short)); }
    }
    labels.forEach((label, i) => parts.push(s("text", { x: left + (i / Math.max(1, labels.length - 1)) * (width - left), y: height - 2, "text-anchor": i === 0 ? "start" : i === labels.length - 1 ? "end" : "middle" }, label)));
    host.setAttribute("class", "chart"); host.setAttribute("height", height); host.setAttribute("viewBox", `0 0 ${width} ${height}`);
    host.replaceChildren(...parts);
  };
  draw();
  new ResizeObserver(draw).observe(host.parentElement);
  return { update(more) { now = { ...now, ...more }; draw(); } };
}

// One bar in parts: [{value, kind}], scaled to `of`, with a mark at the limit.
export function bar(host, parts, of, limit) {
  let x = 0;
  const nodes = [s("rect", { class: "bed", width: 100, height: 8 })];
  for (const { value, kind } of parts) { const w = Math.max(0, Math.min((value / of) * 100, 100 - x)); nodes.push(s("rect", { class: kind, x, width: w, height: 8 })); x += w; }
  if (limit != null) nodes.push(s("rect", { class: "mark", x: (limit / of) * 100 - 0.25, width: 0.5, height: 8 }));
  host.setAttribute("class", "bar"); host.setAttribute("viewBox", "0 0 100 8"); host.setAttribute("preserveAspectRatio", "none");
  host.replaceChildren(...nodes);
}

// One column per value (a layer), those over `hot` in the hot colour.
export function bars(host, { values, names = [], hot = Infinity, height = 150, max, left = 26 }) {
  const width = host.parentElement.clientWidth, bottom = height - 22, ticks = ticksOf(0, max ?? Math.max(1e-9, ...values), 4), high = ticks.values.at(-1), parts = [];
  const y = (v) => bottom - (v / high) * (bottom - 6), step = (width - left - 4) / Math.max(1, values.length);
  for (const value of ticks.values) parts.push(s("line", { class: "axis", x1: left, x2: width, y1: y(value), y2: y(value) }), s("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, fmt(value, ticks.digits)));
  values.forEach((value, i) => parts.push(s("rect", { class: value > hot ? "hotbar" : "bar1", x: left + 2 + i * step, y: y(value), width: Math.max(1.5, step - 1.5), height: Math.max(0, bottom - y(value)) })));
  if (names.length) parts.push(s("text", { x: left, y: height - 6 }, names[0]), s("text", { x: width, y: height - 6, "text-anchor": "end" }, names.at(-1)));
  host.setAttribute("class", "chart"); host.setAttribute("viewBox", `0 0 ${width} ${height}`); host.setAttribute("height", height);
  host.replaceChildren(...parts);
}

for (const host of $$("svg[data-lines]")) lines(host, JSON.parse(host.dataset.lines));
for (const host of $$("svg[data-spark]")) spark(host, JSON.parse(host.dataset.spark));
