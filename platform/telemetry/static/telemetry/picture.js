// What a frame of the live board says, as numbers: no DOM here, so that it can be tested alone.
//
// A frame (or an answer of /routing/) holds counts [phase][domain][layer][expert]; a token counts once for each of its
// top-k experts in each layer. `pick` cuts it to one phase and one domain, and sums the rest. `reach` holds
// [phase][domain][visits, hits]: how often a token passed an expert layer, and in how many of those it reached an expert
// of its own domain (moe_core/routers/mapped.py says when it does). A frame of a very large model sums phases ("all") or
// domains ("*") before it is sent; its reach never is.
export const ALL = "*", SUMMED = "all";
const PHASES = ["prefill", "decode"];

export function fromFrame(frame, counts, reach) { return { ...frame, counts, reach }; }
export function fromRouting(answer) {
  return { ...answer, counts: Float64Array.from(answer.counts.flat(3)), reach: Float64Array.from(answer.reach.flat(2)), reach_domains: answer.domains };
}

export function pick({ counts, phases, domains, layers, num_experts }, phase, domain) {
  const size = layers.length * num_experts, out = new Float64Array(size);
  phases.forEach((name, p) => {
    if (phase && name !== phase && name !== SUMMED) return;
    domains.forEach((code, d) => {
      if (domain !== ALL && code !== domain) return;
      const from = (p * domains.length + d) * size;
      for (let i = 0; i < size; i++) out[i] += counts[from + i];
    });
  });
  return out;
}
export const sum = (loads) => loads.reduce((total, one) => total + one, 0);

// The share to own experts of one domain: {share, tokens}; the share is null for a domain without tokens.
export function reached({ reach, reach_domains: codes, layers }, phase, code) {
  const d = codes.indexOf(code);
  let visits = 0, hits = 0;
  PHASES.forEach((name, p) => {
    if (d < 0 || (phase && name !== phase)) return;
    visits += reach[(p * codes.length + d) * 2]; hits += reach[(p * codes.length + d) * 2 + 1];
  });
  return { share: visits ? hits / visits : null, tokens: layers.length ? Math.round(visits / layers.length) : 0 };
}
// How many experts a token gets: exact, since each visit leaves k assignments.
export function topK(picture) {
  let visits = 0;
  for (let i = 0; i < picture.reach.length; i += 2) visits += picture.reach[i];
  return visits ? Math.round(sum(picture.counts) / visits) : null;
}
// The share that even routing would give: that one of k different experts of E, drawn by lot, is one of the own.
export function byChance(own, experts, k) {
  let miss = 1;
  for (let i = 0; i < k; i++) miss *= Math.max(0, experts - own - i) / (experts - i);
  return 1 - miss;
}

// One value a layer: the busiest expert over the mean, minus one; null where no token came.
export function maxVioByLayer(loads, layers, experts) {
  return Array.from({ length: layers }, (_, layer) => {
    const row = loads.subarray(layer * experts, (layer + 1) * experts), total = sum(row);
    return total ? (Math.max(...row) * experts) / total - 1 : null;
  });
}
export function mean(values) { const known = values.filter((one) => one != null); return known.length ? sum(known) / known.length : null; }

// Cells with their exact ratio, most loaded first; layers without tokens are left out.
export function cells(loads, layers, experts) {
  const found = [];
  layers.forEach((layer, index) => {
    const row = loads.subarray(index * experts, (index + 1) * experts), fair = sum(row) / experts;
    if (fair) row.forEach((load, expert) => found.push({ layer, index, expert, load, ratio: load / fair }));
  });
  return found.sort((a, b) => b.ratio - a.ratio);
}

// Share of each expert in a domain's assignments, over all layers; null for a domain without tokens.
export function shares(picture, phase, domain) {
  const loads = pick(picture, phase, domain), experts = picture.num_experts, total = sum(loads);
  if (!total) return null;
  const out = new Float64Array(experts);
  loads.forEach((load, i) => { out[i % experts] += load / total; });
  return { total, shares: out };
}

// Which domain a cell's tokens come from most: [code, share]; null where nothing came or the frame cannot tell.
export function mostlyFrom(picture, phase, index, expert) {
  if (picture.domains.includes(ALL)) return null;
  const at = index * picture.num_experts + expert, loads = picture.domains.map((code) => [code, pick(picture, phase, code)[at]]), total = loads.reduce((all, [, load]) => all + load, 0);
  if (!total) return null;
  const [code, load] = loads.sort((a, b) => b[1] - a[1])[0];
  return [code, load / total];
}

// Whether only some tokens are counted: then an expert without any is not asleep, it may serve others.
export const isCut = (view) => view.domain !== ALL || Boolean(view.phase);

// The rows of a diagram: each expert layer by its number, and the dense ones between them as runs, {name, index: null}.
export function rowsOf(layers, numLayers) {
  const rows = [];
  const dense = (from, to) => { if (to >= from) rows.push({ name: from === to ? from : `${from}–${to}`, index: null }); };
  let next = 0;
  layers.forEach((layer, index) => { dense(next, layer - 1); rows.push({ name: layer, index }); next = layer + 1; });
  if (layers.length) dense(next, numLayers - 1);
  return rows;
}

// How old what is shown is, in seconds by the server's clock; null when there is no sample, or no clock yet.
export const ageOf = (sampledMs, serverMs) => (sampledMs == null || serverMs == null ? null : Math.max(0, (serverMs - sampledMs) / 1000));
