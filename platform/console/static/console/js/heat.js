// The heat board: one canvas, one byte per cell, one look-up per cell.
//
//   const board = new Heat(host, { layers: [0, 1, …], experts: 8, groups: 8, height: 400, onPick(layer, expert, byte) });
//   board.show(frame)      frame: Uint8Array of layers × experts; `quantise(ratio)` and `loads(counts, layers, experts)` make it
//   board.reshape({layers, experts})      heatTable(shape, frame)      extremes(shape, frame, n)
// A byte of a frame: 255 NONE: no expert here, the layer is dense · 254 QUIET: no token passed this layer, so nothing can be
// said of its experts · 0 ASLEEP: tokens passed, this expert got none · 1…253: 127 + 42·log2(load / fair share), 127 is 1.0.
// A layer is named by its number, or by a text such as "0–9" for a run of dense ones.
// host: <div class="heat" id="heat" aria-label="…"></div>, with a polite live region of the page for what onPick says.
// Cells under 12 px are pixels of a tiny image scaled up without smoothing; larger cells are lamps on tracks. The longer
// axis lies flat. Painted in requestAnimationFrame, newest frame only, nothing while the page is hidden.
import { el, t, $$ } from "./boot.js";

export const ASLEEP = 0, QUIET = 254, NONE = 255;
// Whether a byte says anything about a load.
export const isLoad = (byte) => byte < QUIET;
export const quantise = (ratio) => (ratio <= 0 ? ASLEEP : 127 + Math.round(42 * Math.max(-3, Math.min(3, Math.log2(ratio)))));
export const ratioOf = (byte) => (byte === ASLEEP ? 0 : 2 ** ((byte - 127) / 42));
export const ratioText = (byte) => (byte === ASLEEP ? "0" : byte === 1 ? "≤ ⅛" : byte === 253 ? "≥ 8" : ratioOf(byte).toFixed(byte < 127 ? 2 : 1));
const HALO = 205;

// Counts of one window → bytes, each layer against its own fair share; a layer without tokens is quiet.
export function loads(counts, layers, experts, out = new Uint8Array(layers * experts)) {
  for (let layer = 0; layer < layers; layer++) {
    let total = 0;
    for (let e = 0; e < experts; e++) total += counts[layer * experts + e];
    const fair = total / experts;
    for (let e = 0; e < experts; e++) out[layer * experts + e] = total ? quantise(counts[layer * experts + e] / fair) : QUIET;
  }
  return out;
}

export function stops(name) {
  const style = getComputedStyle(document.documentElement);
  return Array.from({ length: 11 }, (_, i) => {
    const hex = style.getPropertyValue(`--${name}-${i}`).trim();
    return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  });
}
export function colourAt(scale, position) {
  const at = Math.max(0, Math.min(10, position)), low = Math.min(9, Math.floor(at)), part = at - low;
  return scale[low].map((value, i) => Math.round(value + (scale[low + 1][i] - value) * part));
}
export const byteColour = (scale, byte) => colourAt(scale, ((byte - 1) / 252) * 10);
const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const rgb = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

export class Heat {
  constructor(host, { layers, experts, groups, height = 400, onPick }) {
    Object.assign(this, { host, height, onPick, layers, experts, groups: groups ?? (experts > 32 ? 8 : 1) });
    this.canvas = el("canvas", { "aria-hidden": "true" });
    host.replaceChildren(this.canvas);
    host.tabIndex = 0;
    host.setAttribute("role", "application");
    this.ctx = this.canvas.getContext("2d");
    this.tile = document.createElement("canvas");
    this.cursor = null;
    this.due = false;
    this.bytes = new Uint8Array(0);
    new ResizeObserver(() => this.measure()).observe(host);
    addEventListener("themechange", () => { this.readTokens(); this.paint(); });
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.later(); });
    host.addEventListener("pointermove", (event) => this.pick(this.cellAt(event), false));
    host.addEventListener("pointerdown", (event) => this.pick(this.cellAt(event)));
    host.addEventListener("keydown", (event) => this.step(event));
    this.readTokens();
    this.measure();
  }
  reshape({ layers, experts, groups }) {
    Object.assign(this, { layers, experts, groups: groups ?? (experts > 32 ? 8 : 1), cursor: null, frame: null });
    this.measure();
  }
  readTokens() {
    const scale = stops("heat");
    this.lut = new Uint32Array(256);
    this.css = [];
    for (let byte = 0; byte < 256; byte++) {
      const [r, g, b] = byteColour(scale, byte);
      this.lut[byte] = ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
      this.css[byte] = rgb([r, g, b]);
    }
    const dead = token("--heat-dead");
    this.css[ASLEEP] = dead;
    this.lut[ASLEEP] = ((255 << 24) | (parseInt(dead.slice(5, 7), 16) << 16) | (parseInt(dead.slice(3, 5), 16) << 8) | parseInt(dead.slice(1, 3), 16)) >>> 0;
    this.lut[NONE] = this.lut[QUIET] = 0;
    this.ink = { ground: token("--ground"), line: token("--line"), strong: token("--line-strong"), text: token("--ink-3"), ink: token("--ink"), ring: token("--heat-dead-ring"), on: token("--heat-on") };
    this.font = `${token("--text-1")} ${token("--font")}`;
    this.dark = document.documentElement.dataset.theme === "dark";
  }
  measure() {
    const width = this.host.clientWidth, layers = this.layers.length, { experts, groups } = this;
    if (!width || !layers || !experts) return;
    this.flat = layers > experts; // layers run left to right when there are more of them
    const [cols, rows] = this.flat ? [layers, experts] : [experts, layers], gaps = this.flat ? 0 : groups - 1, top = 18;
    const left = this.flat ? 34 : Math.max(34, 16 + 7 * Math.max(...this.layers.map((one) => String(one).length)));
    const cell = Math.max(1, Math.floor((width - left - gaps * 4) / cols));
    // A lamp is round: its track may be wider than it, but not so wide that the rows fall apart.
    const room = Math.floor((this.height - top) / rows), lamps = cell >= 12 && rows <= 64;
    const pitch = lamps ? Math.max(20, Math.min(room, Math.max(26, cell * 2), 46)) : Math.max(4, Math.min(room, 14));
    Object.assign(this, { cols, rows, cell, pitch, left, top, lamps, gap: gaps ? Math.min(9, Math.floor((width - left - cell * cols) / gaps)) : 0 });
    if (this.tile.width !== cols || this.tile.height !== rows || !this.image) {
      this.tile.width = cols; this.tile.height = rows;
      this.image = new ImageData(cols, rows);
      this.words = new Uint32Array(this.image.data.buffer);
    }
    const ratio = devicePixelRatio || 1, height = top + rows * pitch + 4;
    this.canvas.width = Math.round(width * ratio); this.canvas.height = Math.round(height * ratio);
    this.canvas.style.height = `${height}px`;
    this.ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.paint();
  }
  show(frame) {
    if (this.bytes.length !== frame.length) this.bytes = new Uint8Array(frame.length);
    this.bytes.set(frame); this.frame = this.bytes;
    this.later();
  }
  later() {
    if (this.due || document.hidden) return;
    this.due = true;
    requestAnimationFrame(() => { this.due = false; this.paint(); });
  }
  x(col) { return this.left + col * this.cell + (this.gap ? Math.floor(col / (this.cols / this.groups)) * this.gap : 0); }
  y(row) { return this.top + row * this.pitch; }
  at(col, row) { return this.flat ? this.frame[col * this.experts + row] : this.frame[row * this.experts + col]; }
  paint() {
    if (!this.words || !this.cols) return;
    const { ctx, ink } = this;
    ctx.clearRect(0, 0, this.canvas.width, this.canvas.height);
    ctx.font = this.font; ctx.textBaseline = "middle"; ctx.fillStyle = ink.text;
    this.labels();
    if (this.frame) this.lamps ? this.paintLamps() : this.paintPixels();
    else if (this.lamps) this.tracks();
    if (this.cursor) this.ring();
  }
  labels() {
    const { ctx } = this, expert = (e) => `E${e}`, layer = (i) => `L${this.layers[i]}`;
    const [colName, rowName] = this.flat ? [layer, expert] : [expert, layer];
    if (this.lamps) this.denseRows();
    ctx.textAlign = "right";
    const rowStep = Math.max(1, Math.ceil(12 / this.pitch));
    for (let row = 0; row < this.rows; row += rowStep) ctx.fillText(rowName(row), this.left - 8, this.y(row) + this.pitch / 2);
    if (this.gap) { ctx.textAlign = "left"; const per = this.cols / this.groups; for (let g = 0; g < this.groups; g++) ctx.fillText(`${g * per}–${(g + 1) * per - 1}`, this.x(g * per), 8); return; }
    ctx.textAlign = "center";
    const colStep = Math.max(1, Math.ceil(24 / this.cell));
    for (let col = 0; col < this.cols; col += colStep) ctx.fillText(col ? String(this.flat ? this.layers[col] : col) : colName(0), this.x(col) + this.cell / 2, 8);
  }
  // A row without experts says so: its track alone would look like a quiet one.
  denseRows() {
    const { ctx } = this;
    ctx.textAlign = "left";
    for (let row = 0; row < this.rows; row++) if (this.isDense(row)) ctx.fillText(t("no experts"), this.left, this.y(row) + this.pitch / 2);
  }
  isDense(row) { return !this.flat && this.frame?.[row * this.experts] === NONE; }
  tracks() {
    const { ctx, ink } = this;
    ctx.strokeStyle = ink.strong; ctx.lineWidth = 1.25;
    for (let row = 0; row < this.rows; row++) { const y = this.y(row) + this.pitch / 2, from = this.isDense(row) ? this.left + ctx.measureText(t("no experts")).width + 8 : this.left; ctx.strokeStyle = this.isDense(row) ? ink.line : ink.strong; ctx.beginPath(); ctx.moveTo(from, y); ctx.lineTo(this.x(this.cols - 1) + this.cell, y); ctx.stroke(); }
  }
  paintPixels() {
    const { ctx, ink, words, frame, lut } = this, per = this.cols / this.groups;
    for (let row = 0, i = 0; row < this.rows; row++) for (let col = 0; col < this.cols; col++, i++) words[i] = lut[this.at(col, row)];
    this.tile.getContext("2d").putImageData(this.image, 0, 0);
    ctx.imageSmoothingEnabled = false;
    for (let g = 0; g < this.groups; g++) ctx.drawImage(this.tile, g * per, 0, per, this.rows, this.x(g * per), this.top, per * this.cell, this.rows * this.pitch);
    ctx.fillStyle = ink.ground; // the gap that makes a row a track
    for (let row = 1; row < this.rows; row++) ctx.fillRect(this.left, this.y(row) - 1, this.x(this.cols - 1) + this.cell - this.left, 1);
    // The few that matter must be found at 3 px: hot ones get a halo, sleeping ones a hollow frame.
    for (let row = 0; row < this.rows; row++) for (let col = 0; col < this.cols; col++) {
      const byte = this.at(col, row);
      if (byte !== ASLEEP && (byte < HALO || byte === NONE)) continue;
      const x = this.x(col), y = this.y(row);
      // Every second dot, so that a row of them is not taken for a line.
      if (byte === QUIET) { if (col % 2 === 0) { ctx.fillStyle = ink.strong; ctx.fillRect(x, y + Math.floor(this.pitch / 2) - 1, Math.max(1, this.cell - 2), 1); } continue; }
      if (byte === ASLEEP) { ctx.fillStyle = ink.ring; ctx.fillRect(x - 1, y - 1, this.cell + 2, this.pitch + 1); ctx.fillStyle = this.css[ASLEEP]; ctx.fillRect(x, y, this.cell, this.pitch - 1); }
      else { ctx.fillStyle = this.css[byte]; ctx.shadowBlur = this.dark ? 8 : 0; ctx.shadowColor = this.css[byte]; ctx.fillRect(x - 1, y - 1, this.cell + 2, this.pitch + 1); ctx.shadowBlur = 0; }
    }
    ctx.strokeStyle = ink.line; ctx.lineWidth = 1;
    if (!this.flat) for (let row = 0; row < this.rows; row++) if (frame[row * this.experts] === NONE) { ctx.beginPath(); ctx.moveTo(this.left, this.y(row) + this.pitch / 2); ctx.lineTo(this.x(this.cols - 1) + this.cell, this.y(row) + this.pitch / 2); ctx.stroke(); }
  }
  paintLamps() {
    const { ctx, ink, css } = this, size = Math.min(this.cell, this.pitch), r = Math.max(3, size / 2 - (size < 18 ? 1 : 3)), wide = size >= 22;
    this.tracks();
    ctx.textAlign = "center";
    for (let row = 0; row < this.rows; row++) for (let col = 0; col < this.cols; col++) {
      const byte = this.at(col, row), x = this.x(col) + this.cell / 2, y = this.y(row) + this.pitch / 2;
      if (byte === NONE) continue;
      if (byte === QUIET) { ctx.beginPath(); ctx.arc(x, y, 2.5, 0, 6.2832); ctx.fillStyle = ink.ground; ctx.fill(); ctx.strokeStyle = ink.strong; ctx.lineWidth = 1.25; ctx.stroke(); continue; }
      ctx.beginPath(); ctx.arc(x, y, r, 0, 6.2832);
      ctx.shadowBlur = this.dark && byte > 186 && isLoad(byte) ? 10 : 0; ctx.shadowColor = css[byte];
      ctx.fillStyle = css[byte]; ctx.fill(); ctx.shadowBlur = 0;
      ctx.strokeStyle = byte === ASLEEP ? ink.ring : ink.ground; ctx.lineWidth = byte === ASLEEP ? 1.5 : 2; ctx.stroke();
      if (wide && (byte === ASLEEP || byte > 180)) { ctx.fillStyle = byte === ASLEEP ? ink.ring : this.dark ? "#1a1206" : byte > 200 ? "#fff" : ink.ink; ctx.fillText(byte === ASLEEP ? "0" : ratioOf(byte).toFixed(1), x, y + .5); }
    }
  }
  ring() {
    const { ctx, ink } = this, [layer, expert] = this.cursor, [col, row] = this.flat ? [layer, expert] : [expert, layer];
    ctx.strokeStyle = ink.ink; ctx.lineWidth = 1.5;
    const x = this.x(col), y = this.y(row);
    if (this.lamps) { ctx.beginPath(); ctx.arc(x + this.cell / 2, y + this.pitch / 2, Math.min(this.cell, this.pitch) / 2 + 1, 0, 6.2832); ctx.stroke(); }
    else ctx.strokeRect(x - 2.5, y - 3, this.cell + 5, this.pitch + 5);
  }
  cellAt(event) {
    const box = this.canvas.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top, row = Math.floor((py - this.top) / this.pitch);
    let col = -1;
    for (let c = 0; c < this.cols; c++) if (px >= this.x(c) && px < this.x(c) + this.cell) { col = c; break; }
    if (row < 0 || row >= this.rows || col < 0) return null;
    return this.flat ? [col, row] : [row, col];
  }
  // `layer` handed to onPick is the model's layer number, `index` its place in the frame.
  pick(cell, said = true) {
    if (!cell || (this.cursor && cell[0] === this.cursor[0] && cell[1] === this.cursor[1])) return;
    this.cursor = cell;
    this.later();
    this.tell(said);
  }
  tell(said = false) {
    if (!this.cursor || !this.frame) return;
    const [index, expert] = this.cursor;
    this.onPick?.({ layer: this.layers[index], index, expert, byte: this.frame[index * this.experts + expert], said });
  }
  // The next layer with experts from here on; who walks by keyboard does not stop at dense ones.
  nextLayer(from, way) {
    for (let at = from; at >= 0 && at < this.layers.length; at += way) if (this.frame?.[at * this.experts] !== NONE) return at;
    return null;
  }
  step(event) {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    const far = event.shiftKey ? 8 : 1, bound = (value, size) => Math.max(0, Math.min(size - 1, value));
    const [dl, de] = this.flat ? move : [move[1], move[0]], first = this.cursor ? null : this.nextLayer(0, 1);
    if (first != null) { this.pick([first, 0]); return; }
    const [layer, expert] = this.cursor ?? [0, 0], aim = bound(layer + dl * far, this.layers.length);
    this.pick([dl ? this.nextLayer(aim, dl) ?? layer : layer, bound(expert + de * far, this.experts)]);
  }
}

// What a screen reader hears when somebody moved to a cell.
export function cellWords({ layer, expert, byte }) {
  if (byte === NONE) return t("Layer {layer} has no experts: every token passes", { layer });
  if (byte === QUIET) return t("Layer {layer} is quiet: no token passed it", { layer });
  if (byte === ASLEEP) return t("Layer {layer}, expert {expert}: asleep, no token came", { layer, expert });
  return t("Layer {layer}, expert {expert}: {ratio} times the fair share", { layer, expert, ratio: ratioText(byte) });
}

// Legends are drawn from the same stops as the board, so they cannot disagree.
export function legends() {
  for (const box of $$("[data-legend]")) {
    const canvas = $$("canvas", box)[0], scale = stops(box.dataset.legend), ctx = canvas.getContext("2d");
    canvas.width = 168; canvas.height = 8;
    for (let x = 0; x < 168; x++) { ctx.fillStyle = rgb(colourAt(scale, (x / 167) * 10)); ctx.fillRect(x, 0, 1, 8); }
  }
}
legends();
addEventListener("themechange", legends);

// The hottest and coldest cells, as {byte, layer, index, expert}.
export function extremes({ layers, experts }, frame, count = 5) {
  const cells = [];
  for (let i = 0; i < frame.length; i++) if (isLoad(frame[i])) cells.push({ byte: frame[i], index: Math.floor(i / experts), layer: layers[Math.floor(i / experts)], expert: i % experts });
  cells.sort((a, b) => b.byte - a.byte);
  return { hot: cells.slice(0, count), cold: cells.slice(-count).reverse(), asleep: cells.filter(({ byte }) => byte === ASLEEP).length, over: cells.filter(({ byte }) => byte > quantise(2)).length, of: cells.length };
}
// The same board as words: one row per layer, for a screen reader and for copying.
export function heatTable({ layers, experts }, frame) {
  const head = [t("Layer"), t("Highest"), t("Lowest"), t("Over 2×"), t("Asleep")], body = [];
  layers.forEach((layer, index) => {
    const row = [...frame.subarray(index * experts, (index + 1) * experts)];
    if (row[0] === NONE) return;
    if (row[0] === QUIET) { body.push(el("tr", {}, el("th", { scope: "row" }, `L${layer}`), el("td", { colspan: 4, class: "quiet" }, t("quiet: no token passed it")))); return; }
    const max = Math.max(...row), min = Math.min(...row);
    body.push(el("tr", {}, el("th", { scope: "row" }, `L${layer}`), el("td", {}, `E${row.indexOf(max)} · ${ratioText(max)}×`), el("td", {}, `E${row.indexOf(min)} · ${ratioText(min)}×`), el("td", { class: "num" }, row.filter((b) => b > quantise(2)).length), el("td", { class: "num" }, row.filter((b) => b === ASLEEP).length)));
  });
  return el("table", {}, el("thead", {}, el("tr", {}, ...head.map((text, i) => el("th", { scope: "col", class: i > 2 ? "num" : null }, text)))), el("tbody", {}, ...body));
}
// Wires a "Show as table" button: <button data-heat-table aria-controls="ID" aria-expanded="false">.
export function tableButton(button, board) {
  const place = document.getElementById(button.getAttribute("aria-controls"));
  button.addEventListener("click", () => {
    const open = place.hidden;
    place.hidden = !open; button.setAttribute("aria-expanded", open);
    button.textContent = open ? t("Hide the table") : t("Show as table");
    if (open && board.frame) place.replaceChildren(heatTable(board, board.frame));
  });
}
