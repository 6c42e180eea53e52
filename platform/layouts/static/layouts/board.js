// The layer board of the layout editor: one lamp per layer on a running line, tied to the text field under it.
//
// <div id="board" data-counts='{"7": 30}'>  layers of each base version; input#id_layers holds "0-9, 12";
// .segment[data-fills="ID"] buttons fill a number field. Every change is an "input" event, on which htmx asks the server.
import { $, $$, el, t } from "/static/console/js/boot.js";

const board = $("#board"), text = $("#id_layers"), base = $("#id_base_version"), form = $("#layout-form");
const counts = JSON.parse(board.dataset.counts);
const cells = el("div", { class: "layers", role: "group", "aria-label": t("Layers with experts") }), told = el("span", { class: "quiet small", role: "status" });
let chosen = new Set(), anchor = 0, painting = null;

const total = () => counts[base.value] ?? 0;

// "0-2, 5" and back; what cannot be read is left to the server to refuse.
function read() {
  const layers = new Set();
  for (const part of text.value.replace(/\s*[-–]\s*/g, "-").split(/[,，、;\s]+/)) {
    const found = part.match(/^(\d{1,3})(?:-(\d{1,3}))?$/);
    if (found) for (let i = +found[1]; i <= +(found[2] ?? found[1]) && i < 512; i++) layers.add(i);
  }
  return layers;
}
function write() {
  const runs = [];
  for (const layer of [...chosen].sort((a, b) => a - b)) { const last = runs.at(-1); if (last && last[1] === layer - 1) last[1] = layer; else runs.push([layer, layer]); }
  text.value = runs.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`)).join(", ");
  text.dispatchEvent(new Event("input", { bubbles: true }));
}

function draw() {
  if (cells.childElementCount !== total()) {
    cells.replaceChildren(...Array.from({ length: total() }, (_, layer) => el("button", { type: "button", class: "layer", "data-layer": layer, tabindex: layer ? -1 : 0 }, el("i", { "aria-hidden": "true" }), String(layer))));
  }
  for (const cell of cells.children) {
    const layer = +cell.dataset.layer, on = chosen.has(layer);
    cell.setAttribute("aria-pressed", on);
    cell.setAttribute("aria-label", on ? t("Layer {layer}, with experts", { layer }) : t("Layer {layer}, dense", { layer }));
  }
  const inside = [...chosen].filter((layer) => layer < total()).length;
  told.textContent = t("{count} of {total} layers", { count: inside, total: total() });
}
function set(layer, on) { if (on) chosen.add(layer); else chosen.delete(layer); }
function preset(test) { chosen = new Set(Array.from({ length: total() }, (_, i) => i).filter(test)); draw(); write(); }

cells.addEventListener("pointerdown", (event) => {
  const cell = event.target.closest("[data-layer]");
  if (!cell || event.button) return;
  event.preventDefault();
  cell.focus();
  const layer = +cell.dataset.layer, on = !chosen.has(layer);
  if (event.shiftKey) { for (let i = Math.min(anchor, layer); i <= Math.max(anchor, layer); i++) set(i, chosen.has(anchor)); draw(); write(); return; }
  painting = on;
  anchor = layer;
  set(layer, on);
  draw();
});
addEventListener("pointermove", (event) => {
  if (painting === null) return;
  const cell = document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-layer]");
  if (cell) { set(+cell.dataset.layer, painting); draw(); }
});
addEventListener("pointerup", () => { if (painting !== null) { painting = null; write(); } });
cells.addEventListener("keydown", (event) => {
  const cell = event.target.closest("[data-layer]");
  if (!cell) return;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10 }[event.key];
  if (step) {
    const next = cells.children[+cell.dataset.layer + step];
    event.preventDefault();
    if (!next) return;
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    if (event.shiftKey) { set(+next.dataset.layer, chosen.has(+cell.dataset.layer)); draw(); write(); }
  } else if (event.key === " " || event.key === "Enter") {
    event.preventDefault();
    anchor = +cell.dataset.layer;
    set(anchor, !chosen.has(anchor));
    draw();
    write();
  }
});

const choice = (label, test) => el("button", { type: "button", class: "btn plain", on: { click: () => preset(test) } }, t(label));
board.append(
  el("div", { class: "presets" }, choice("All", () => true), choice("Every second", (i) => i % 2 === 1), choice("Upper half", (i) => i >= total() / 2), choice("None", () => false), told),
  cells,
);

function fillSegments() {
  for (const group of $$("[data-fills]")) for (const button of $$("button", group)) button.setAttribute("aria-pressed", button.value === document.getElementById(group.dataset.fills).value);
}
for (const group of $$("[data-fills]")) group.addEventListener("choose", (event) => {
  const field = document.getElementById(group.dataset.fills);
  field.value = event.detail;
  field.dispatchEvent(new Event("input", { bubbles: true }));
});
form.addEventListener("input", (event) => {
  if (event.target === text) { chosen = read(); draw(); }
  fillSegments();
  $("#unsaved").hidden = false;
});
base.addEventListener("change", () => { chosen = new Set([...chosen].filter((layer) => layer < total())); draw(); write(); });

chosen = read();
draw();
fillSegments();
