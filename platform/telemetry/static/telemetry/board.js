// The live board. Frames come four times a second; the canvas follows each, words and lists once a second.
//
// picture.js turns frames into numbers, panels.js and figures.js show them; here is what comes in, what is chosen, and when.
import { $, $$, t, agoText } from "/static/console/js/boot.js";
import { connect, showState, counts32 } from "/static/console/js/live.js";
import { watch } from "/static/deployments/watch.js";
import { Heat, NONE, ASLEEP, loads as quantised, cellWords, heatTable, tableButton } from "/static/console/js/heat.js";
import { ALL, SUMMED, fromFrame, fromRouting, pick, cells, rowsOf, ageOf, isCut } from "./picture.js";
import { showVerdict, showLists, showCell, showOwn, showFlow, showBalance } from "./panels.js";
import { showNow, showWindow, forgetTraces, History } from "./figures.js";

// An idle engine speaks once a second: what is older than LATE_S is late, and after GONE_S nobody speaks any more.
const LATE_S = 2.5, GONE_S = 10, ASK_AGAIN_MS = 5000;
const board = $("#board"), read = (name) => JSON.parse(board.dataset[name]);
const known = Object.fromEntries(read("domains").map((one) => [one.code, one]));
const view = { phase: "", domain: ALL, window: "live", paused: false };
const history = new History($("#history"), read("history"), read("marks"));
// `live` is the newest frame, `picture` what is shown: the same, or an older window.
let live = null, picture = null, rows = [], now = { kind: "connecting", since: new Date() }, askedAt = 0;

const heat = new Heat($("#heat"), { layers: [], experts: 0, height: 330, onPick(cell) {
  if (picture) showCell(seen(), { name: cell.layer, index: rows[cell.index]?.index, expert: cell.expert });
  // Spoken only when somebody moved: a value that changes by itself must not talk.
  if (cell.said) $("#cell-said").textContent = cell.byte === ASLEEP && isCut(view) ? t("Layer {layer}, expert {expert}: none of the chosen tokens came", cell) : cellWords(cell);
} });
tableButton($("#as-table"), heat);

function seen() {
  const loads = pick(picture, view.phase, view.domain), found = cells(loads, picture.layers, picture.num_experts);
  return { picture, view, known, live, heat, loads, found, go };
}
function go(index, expert) { heat.cursor = null; heat.pick([rows.findIndex((row) => row.index === index), expert]); $("#heat").focus(); }

// -- the canvas, at every frame ---------------------------------------------------------------
function show() {
  if (!picture) return;
  const { layers, num_experts: experts } = picture;
  const names = rowsOf(layers, live?.num_layers ?? 0), same = heat.experts === experts && heat.layers.length === names.length && names.every((row, i) => row.name === heat.layers[i]);
  rows = names;
  if (!same) { heat.reshape({ layers: rows.map(({ name }) => name), experts }); $("#heat-size").textContent = sizeWords(layers.length, experts); }
  board.classList.toggle("dense", !experts && picture.num_layers > 0);
  $("#heat").hidden = !experts; $("#heat-empty").hidden = Boolean(experts); $("#heat-foot").hidden = !experts;
  limitChoices();
  if (!experts) { $("#heat-empty").textContent = picture.num_layers ? t("This version has no experts: there is no routing to watch.") : t("Nothing serves here yet; the lamps appear with the first version."); return; }
  heat.show(frameOf(quantised(pick(picture, view.phase, view.domain), layers.length, experts), experts));
}
function frameOf(bytes, experts) {
  const frame = new Uint8Array(rows.length * experts).fill(NONE);
  rows.forEach(({ index }, row) => { if (index != null) frame.set(bytes.subarray(index * experts, (index + 1) * experts), row * experts); });
  return frame;
}
function sizeWords(layers, experts) {
  const dense = (live?.num_layers ?? 0) - layers;
  if (!experts) return "";
  return dense > 0 ? t("{layers} layers × {experts} experts, {dense} layers without", { layers, experts, dense }) : t("{layers} layers × {experts} experts", { layers, experts });
}
// A frame of a very large model cannot be cut: then the choice is not offered, instead of showing nothing.
function limitChoices() {
  const noDomains = picture.domains.includes(ALL), noPhases = picture.phases.includes(SUMMED);
  for (const [group, off] of [["#domains", noDomains], ["#phase", noPhases]]) for (const button of $$(`${group} button`).slice(1)) button.disabled = off;
  if (noDomains && view.domain !== ALL) $("#domains button").click();
  if (noPhases && view.phase) $("#phase button").click();
}

// -- words, once a second ---------------------------------------------------------------------
function showWords() {
  if (!picture) return;
  const all = seen();
  showVerdict(all); showLists(all); showOwn(all); showFlow(all); showBalance(all); showWindow(all);
  if (heat.cursor) heat.tell();
  const table = $("#heat-table"), chosen = getSelection();
  // Text that somebody has marked to copy is left alone.
  if (!table.hidden && heat.frame && (chosen.isCollapsed || !table.contains(chosen.anchorNode))) table.replaceChildren(heatTable(heat, heat.frame));
}
// How fresh it is: by the server's clock and the engine's newest sample, not by when a message came.
function freshness() {
  const age = ageOf(live?.sampled_ms, feed.serverNow());
  if (live && live.sampled_ms == null) return { state: "off", words: t("no sample yet") };
  if (age == null) return { state: "ok", words: t("following live") };
  if (age > GONE_S) return { state: "off", words: t("no engine reports; last sample {ago}", { ago: agoText(live.sampled_ms, feed.serverNow()) }) };
  return { state: age > LATE_S ? "caution" : "ok", words: t("live, {seconds} s behind", { seconds: age.toFixed(1) }) };
}
const tellState = () => showState(now, now.kind === "live" ? freshness() : undefined);

// -- what comes in ----------------------------------------------------------------------------
function take(told) {
  live = fromFrame(told, counts32(told.counts), counts32(told.reach));
  history.note(told); showNow(told, view);
  if (view.window === "live") { picture = live; show(); }
}
const feed = connect(`/ws/board/${board.dataset.deployment}/`, {
  snapshot(told) { const first = !live; take(told); if (first) { showWords(); history.show(told.t_ms, view); } },
  event: take,
  state(next) { now = next; if (next.kind !== "live") tellState(); },
});
// Whether it serves is not in the frames: a dead engine sends none.
watch(board.dataset.deployment);
// Nobody sends frames of a deployment that fell silent, and yet its last minute empties: ask until it has.
function askWhenSilent() {
  const age = ageOf(live?.sampled_ms, feed.serverNow());
  if (age == null || age < LATE_S || age > 2 * 60 || performance.now() - askedAt < ASK_AGAIN_MS) return;
  askedAt = performance.now(); feed.resync();
}
async function fetchWindow() {
  const chosen = view.window;
  if (chosen === "live") return;
  const answer = await fetch(`${board.dataset.routing}?window=${chosen}`, { credentials: "same-origin", headers: { Accept: "application/json" } }).catch(() => null);
  if (!answer?.ok || view.window !== chosen) return;
  const told = fromRouting(await answer.json());
  picture = { ...told, num_layers: live?.num_layers, first_token: told.first_token_ms, inter_token: told.inter_token_ms };
  show(); showWords();
}

// -- what is chosen ---------------------------------------------------------------------------
$("#deployment").addEventListener("change", (event) => location.assign(event.target.value));
$("#phase").addEventListener("choose", ({ detail }) => { view.phase = detail; show(); showWords(); });
$("#domains").addEventListener("choose", ({ detail }) => { view.domain = detail; if (live) showNow(live, view); history.show(feed.serverNow(), view); show(); showWords(); });
$("#window").addEventListener("choose", ({ detail }) => {
  view.window = detail; forgetTraces();
  if (detail !== "live") fetchWindow();
  else if (live) { picture = live; show(); showWords(); }
});
$("#pause").addEventListener("click", () => {
  view.paused = !view.paused;
  $("#pause span").textContent = view.paused ? t("Resume") : t("Pause");
  if (view.paused) feed.pause(); else feed.resume();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== " " || !(event.target === document.body || event.target.id === "heat")) return;
  event.preventDefault(); $("#pause").click();
});
// "Where" leads to the cell that the verdict names.
$('#verdict [data-more="where"]').addEventListener("click", (event) => {
  const worst = picture && seen().found[0];
  if (worst) { event.preventDefault(); go(worst.index, worst.expert); }
});
addEventListener("themechange", () => { if (picture) showWords(); });

let beats = 0;
setInterval(() => {
  tellState();
  if (document.hidden || view.paused) return;
  askWhenSilent(); showWords();
  if (++beats % 5 === 0) { history.show(feed.serverNow(), view); fetchWindow(); }
}, 1000);
history.show(null, view);
new ResizeObserver(() => { if (picture) showBalance(seen()); }).observe($("#balance").parentElement);
