// The domain map editor: one domain's details at a time, arrows in the matrix, and the server's verdict while typing.
//
// <form id="map-form" data-check="/domains/check/"> holds #map-board (routing/board.html). Buttons with data-op post the
// form as it stands and bring the board back with a row more or less. Without this module the same buttons reload the page.
import { $, $$, focusError } from "/static/console/js/boot.js";

const form = $("#map-form");
let shown = 0, timer = 0;

function show(row) {
  const all = $$(".one-domain");
  shown = Math.max(0, Math.min(row, all.length - 1));
  all.forEach((section, i) => { section.hidden = i !== shown; });
  for (const line of $$("tr[data-row]")) line.setAttribute("aria-selected", +line.dataset.row === shown);
}

// What is typed on the right is what the row on the left is called.
function mirror(row) {
  const value = (name) => $(`[name="${name}-${row}"]`, form)?.value ?? "", colour = $(`[name="colour-${row}"]:checked`, form)?.value ?? 1;
  const code = value("code") || "?", name = (document.documentElement.lang.startsWith("zh") ? value("name_zh") : value("name_en")) || value("code") || "…";
  for (const chip of [$(`tr[data-row="${row}"] .domain`), $(`#domain-${row}-title .domain`)]) {
    if (!chip) continue;
    chip.dataset.colour = colour;
    $("i", chip).textContent = code.slice(0, 3).toUpperCase();
    chip.lastChild.textContent = name;
  }
  const line = $(`tr[data-row="${row}"]`);
  if (line) line.dataset.colour = colour;
}

// Experts that the matrix does not draw are typed below or beside it; their row says them too.
function mirrorTyped(field) {
  const place = $(`[data-typed="${field.name?.replace(/^typed-/, "")}"]`);
  if (place && field.name.startsWith("typed-")) place.textContent = field.value;
}

const ask = (values) => window.htmx.ajax("POST", form.dataset.check, { source: form, target: values ? "#map-board" : "#verdict-sink", swap: values ? "outerHTML" : "none", values: { ...(values ?? {}) } });
function checkSoon() { clearTimeout(timer); timer = setTimeout(() => ask(null), 150); }

form.addEventListener("input", (event) => {
  $("#unsaved").hidden = false;
  const row = event.target.name?.match(/-(\d+)$/)?.[1];
  if (row != null) mirror(row);
  mirrorTyped(event.target);
  checkSoon();
});
form.addEventListener("click", (event) => {
  const op = event.target.closest("[data-op]"), pick = event.target.closest("[data-pick]");
  if (pick) show(+pick.dataset.pick);
  if (!op) return;
  event.preventDefault();
  $("#unsaved").hidden = false;
  if (op.value === "add") shown = $$(".one-domain").length;
  ask({ op: op.value });
});
form.addEventListener("change", (event) => { if (event.target.id === "id_num_experts") ask({ op: "resize" }); });
document.addEventListener("htmx:afterSwap", (event) => {
  if (event.target.id !== "map-board" && event.detail.target?.id !== "map-board") return;
  const fresh = shown === $$(".one-domain").length - 1 && !$(`[name="code-${shown}"]`)?.value;
  show(shown);
  if (fresh) $(`[name="name_en-${shown}"]`)?.focus();
});

// Arrows walk the stations; the space bar sets them, as for any box.
form.addEventListener("keydown", (event) => {
  const box = event.target.closest(".stop input"), step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!box || !step) return;
  const row = box.closest("tr"), rows = [...row.parentElement.children], column = [...row.children].indexOf(box.parentElement);
  const next = rows[rows.indexOf(row) + step[0]]?.children[column + step[1]]?.querySelector("input[type=checkbox]");
  event.preventDefault();
  if (next) { next.focus(); if (next.closest("tr").dataset.row != null) show(+next.closest("tr").dataset.row); }
});
form.addEventListener("focusin", (event) => { const line = event.target.closest("tr[data-row]"); if (line) show(+line.dataset.row); });

form.classList.add("scripted");
// A map that was refused comes back at the first domain that lacks something.
show(Math.max(0, $$(".one-domain").findIndex((section) => $(".error", section))));
focusError(document);
