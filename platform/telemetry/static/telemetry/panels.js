// The words, lists and tables of the live board: each takes what is seen (`picture`, `view`, `known` domains) and shows it.
import { $, $$, el, t, fmt, percent, domainChip } from "/static/console/js/boot.js";
import { stops, colourAt, quantise } from "/static/console/js/heat.js";
import { s, bar, bars } from "/static/console/js/charts.js";
import { ALL, isCut, pick, sum, maxVioByLayer, shares, mostlyFrom, reached, topK, byChance } from "./picture.js";

export const HOT = 2;
const SHOWN = 5, MANY = 24, HALF = 0.5;

export const chipOf = (known) => (code) => domainChip(known[code] ?? { code: "–", name: t("none named"), colour: 0 });

// -- the verdict ------------------------------------------------------------------------------
// What is seen is always of the last frame. To those who listen a figure that keeps moving is told now and then, another
// finding at once.
const PATIENCE_MS = 5000;
let saidAt = -Infinity, saidFor = "";
function say(view, state, strong, rest = "", more = "where") {
  const lamp = $("#verdict .lamp"), [first, second] = [$("#verdict b"), $("#verdict p span")];
  if (lamp.dataset.state !== state) lamp.dataset.state = state;
  if (first.textContent !== strong) first.textContent = strong;
  if (second.textContent !== rest) second.textContent = rest;
  for (const link of $$("#verdict [data-more]")) link.hidden = link.dataset.more !== more;
  speak([state, more, view.window, view.phase, view.domain].join(), `${strong} ${rest}`);
}
function speak(subject, words) {
  const spoken = $("#verdict-spoken");
  if (spoken.textContent === words || (subject === saidFor && performance.now() - saidAt < PATIENCE_MS)) return;
  spoken.textContent = words;
  saidAt = performance.now();
  saidFor = subject;
}
export function showVerdict({ picture, view, known, live, found }) {
  const engines = live?.gauges?.engines ?? 0, isLive = view.window === "live";
  if (!picture.num_experts && picture.num_layers) return say(view, "off", t("This version has no experts: there is no routing to watch."), t("Its speed stands below; lay experts over it to see them light up."), "layout");
  if (!sum(picture.counts)) {
    if (!engines) return say(view, "off", t("No engine reports."), t("Its page says what holds it up; the board follows by itself."), "deployment");
    return say(view, "off", isLive ? t("No token came in the last minute.") : t("No token came in this window."), t("Send a request, and the experts light up."), "playground");
  }
  if (view.domain !== ALL && known[view.domain]) return sayDomain(picture, view, known[view.domain]);
  if (!found.length) return say(view, "off", t("No such token came in this window."), "", "none");
  const { layer, expert, ratio } = found[0], asleep = found.filter(({ load }) => !load).length, words = { layer, expert, ratio: fmt(ratio, 1), count: fmt(asleep) };
  if (isCut(view)) return say(view, ratio > HOT ? "caution" : "ok", t("Of the chosen tokens, layer {layer}, expert {expert} takes {ratio}× an even share; {count} experts get none.", words));
  return say(view, ratio > HOT || asleep ? "caution" : "ok", ratio > HOT ? hotWords(asleep, words) : levelWords(asleep, words));
}
// One, many and none have words of their own.
function hotWords(asleep, words) {
  if (!asleep) return t("Layer {layer}, expert {expert} carries {ratio}× its fair share.", words);
  return asleep === 1 ? t("Layer {layer}, expert {expert} carries {ratio}× its fair share; {count} expert is asleep.", words) : t("Layer {layer}, expert {expert} carries {ratio}× its fair share; {count} experts are asleep.", words);
}
function levelWords(asleep, words) {
  if (!asleep) return t("The load is level: no expert carries more than {ratio}× its fair share.", words);
  return asleep === 1 ? t("No expert carries more than {ratio}× its fair share, but {count} is asleep.", words) : t("No expert carries more than {ratio}× its fair share, but {count} are asleep.", words);
}
function sayDomain(picture, view, { code, name, experts }) {
  const { share } = reached(picture, view.phase, code), chance = chanceOf(picture, experts);
  if (share == null) return say(view, "off", view.window === "live" ? t("No token of {name} came in the last minute.", { name }) : t("No token of {name} came in this window.", { name }), "", "playground");
  const words = { name, share: percent(share), chance: percent(chance) };
  const rest = chance == null ? "" : t("Even routing would give {chance}.", words);
  return say(view, isPoor(share, chance) ? "caution" : "ok", t("{share} of the tokens of {name} reach its own experts.", words), rest);
}
// Under one half, or no better than a router that knows nothing.
const isPoor = (share, chance) => share < HALF || (chance != null && share <= chance);
function chanceOf(picture, own) {
  const k = topK(picture);
  return k ? byChance(own.length, picture.num_experts, k) : null;
}

// -- lists ------------------------------------------------------------------------------------
export function showLists({ picture, view, known, heat, found, go }) {
  const chip = chipOf(known), hot = found.filter(({ ratio }) => ratio > HOT), cold = found.filter(({ load }) => !load), any = found.length > 0;
  const row = ({ layer, index, expert, load, ratio }, note) => {
    const dot = el("i", { class: "swatch" }), name = el("button", { class: "berth", type: "button", on: { click: () => go(index, expert) } }, `L${layer}·E${expert}`);
    dot.style.background = heat.css[quantise(ratio)];
    return el("li", {}, dot, name, note ?? null, el("span", { class: "over" }, load ? `${fmt(ratio, 1)}×` : "0"));
  };
  // Cut to one domain, all load is that domain's own.
  const most = ({ index, expert }) => { if (view.domain !== ALL) return null; const from = mostlyFrom(picture, view.phase, index, expert); return from ? chip(from[0]) : null; };
  const isLive = view.window === "live", cut = isCut(view);
  const never = cut ? (isLive ? t("none of the chosen tokens in the last minute") : t("none of the chosen tokens in this window")) : isLive ? t("no token in the last minute") : t("no token in this window");
  $("#hot-title small").textContent = cut ? t("over 2×, of the chosen tokens") : t("over 2×");
  $("#cold-title span").textContent = cut ? t("Not reached") : t("Asleep");
  $("#cold-title small").textContent = cut ? t("by the chosen tokens") : t("no token in the window");
  fill("#hot", hot, (one) => row(one, most(one)), any ? t("No expert is over 2×.") : t("Nothing to compare: no token came."));
  fill("#cold", cold, (one) => row(one, el("span", { class: "quiet small" }, never)), any ? (cut ? t("Every expert got some of the chosen tokens.") : t("Every expert got tokens.")) : t("Nothing to compare: no token came."));
}
function fill(place, found, make, nothing) {
  const host = $(place), items = found.slice(0, SHOWN).map(make), held = [...host.querySelectorAll("button")].indexOf(document.activeElement);
  if (!items.length) items.push(el("li", { class: "quiet small" }, nothing));
  if (found.length > SHOWN) items.push(el("li", { class: "quiet small" }, t("and {count} more", { count: fmt(found.length - SHOWN) })));
  host.replaceChildren(...items);
  // Whoever stands on a row by keyboard goes on standing there.
  if (held >= 0) (host.querySelectorAll("button")[held] ?? host.querySelector("button"))?.focus();
}

// -- one cell ---------------------------------------------------------------------------------
export function showCell({ picture, view, known }, { name, index, expert }) {
  if (index == null) {
    $("#cell-id").textContent = `L${name}`;
    $("#cell").replaceChildren(el("p", { class: "quiet small" }, t("No experts here: every token passes this part.")));
    return;
  }
  const chip = chipOf(known), experts = picture.num_experts, at = index * experts + expert, loads = pick(picture, view.phase, view.domain), fair = sum(loads.subarray(index * experts, (index + 1) * experts)) / experts;
  $("#cell-id").textContent = `L${picture.layers[index]}·E${expert}`;
  const from = mostlyFrom(picture, view.phase, index, expert), owners = Object.values(known).filter((one) => one.experts.includes(expert)), facts = [
    [t("Load"), fair ? t("{ratio}× its fair share", { ratio: fmt(loads[at] / fair, 2) }) : t("quiet")],
    [t("Tokens routed here"), fmt(loads[at])],
    [t("Of its layer"), fair ? percent(loads[at] / (fair * experts), 1) : "—"],
    [t("Own expert of"), owners.length ? el("span", { class: "chips-in" }, ...owners.map(({ code }) => chip(code))) : t("no domain")],
    [view.domain === ALL ? t("Mostly from") : t("Mostly from, all domains"), from ? el("span", {}, chip(from[0]), ` ${percent(from[1])}`) : "—"],
  ];
  if (picture.phases.length > 1) facts.push([t("Reading prompts"), fmt(pick(picture, "prefill", view.domain)[at])], [t("Writing answers"), fmt(pick(picture, "decode", view.domain)[at])]);
  $("#cell").replaceChildren(el("dl", { class: "facts" }, ...facts.flatMap(([label, value]) => [el("dt", {}, label), el("dd", {}, value)])));
}

// -- domains ----------------------------------------------------------------------------------
export function showOwn({ picture, view, known }) {
  const host = $("#own");
  if (!host) return;
  const chip = chipOf(known);
  host.replaceChildren(...Object.values(known).map(({ code, experts }) => {
    const { share, tokens } = reached(picture, view.phase, code), chance = chanceOf(picture, experts), line = s("svg", { "aria-hidden": "true" });
    bar(line, share == null ? [] : [{ value: share, kind: isPoor(share, chance) ? "poor" : "fine" }], 1, chance ?? undefined);
    const words = share == null ? t("no token") : t("{count} tokens", { count: fmt(tokens) });
    return el("li", {}, chip(code), line, el("span", { class: "over" }, percent(share)), el("span", { class: "quiet small count" }, words));
  }));
}
export function showFlow({ picture, view, known }) {
  const experts = picture.num_experts, scale = stops("seq"), dark = document.documentElement.dataset.theme === "dark", chip = chipOf(known);
  const codes = [...Object.keys(known), ""].filter((code) => code || picture.domains.includes(""));
  if (!experts || picture.domains.includes(ALL)) { $("#flow").replaceChildren(el("p", { class: "quiet small" }, experts ? t("This model has too many experts to tell its domains apart live; choose 10 min.") : "—")); return; }
  // So many columns cannot be read: then the domains' own experts stand alone, and the rest together.
  const all = [...Array(experts).keys()], own = [...new Set(Object.values(known).flatMap((one) => one.experts))].sort((a, b) => a - b), columns = experts > MANY ? own.slice(0, MANY) : all, others = experts > columns.length;
  const heads = [t("Domain"), ...columns.map((e) => `E${e}`), ...(others ? [t("others")] : []), t("Assignments")];
  const body = codes.map((code) => {
    const found = shares(picture, view.phase, code), mine = new Set(known[code]?.experts ?? []);
    const box = (share, isOwn) => {
      const text = el("span", {}, share == null ? "—" : percent(share));
      if (share != null) { text.style.background = `rgb(${colourAt(scale, share * 10).join(" ")})`; text.style.color = (share > 0.55) !== dark ? "#fff" : "#10201b"; }
      return el("td", { class: isOwn ? "home" : null, title: isOwn ? t("its own expert") : null }, text);
    };
    const boxes = columns.map((expert) => box(found?.shares[expert] ?? null, mine.has(expert)));
    if (others) boxes.push(box(found ? Math.max(0, 1 - columns.reduce((total, e) => total + found.shares[e], 0)) : null, false));
    return el("tr", {}, el("th", { scope: "row" }, chip(code)), ...boxes, el("td", { class: "plain" }, fmt(found?.total ?? 0)));
  });
  $("#flow").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ...heads.map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, ...body)));
}

export function showBalance({ picture, loads }) {
  const { layers, num_experts: experts } = picture;
  if (!experts) return;
  const values = maxVioByLayer(loads, layers.length, experts).map((one) => one ?? 0);
  bars($("#balance"), { values, names: layers.map((layer) => `L${layer}`), hot: 1, max: Math.max(1, ...values) });
}
