// What a frame of the live board says, as numbers: no DOM here, so that it can be tested alone.
//
// A frame (or an answer of /routing/) holds counts [phase][domain][layer][expert]; a token counts once for each of its
// top-k experts in each layer. `pick` cuts it to one phase and one domain, and sums the rest.
export const ALL = "*";

export function fromFrame(frame, counts) { return { ...frame, counts }; }
export function fromRouting(answer) { return { ...answer, counts: Float64Array.from(answer.counts.flat(3)) }; }

export function pick({ counts, phases, domains, layers, num_experts }, phase, domain) {
  const size = layers.length * num_experts, out = new Float64Array(size);
  phases.forEach((name, p) => {
    if (phase && name !== phase && name !== "all") return;
    domains.forEach((code, d) => {
      if (domain !== ALL && code !== domain) return;
      const from = (p * domains.length + d) * size;
      for (let i = 0; i < size; i++) out[i] += counts[from + i];
    });
  });
  return out;
}
export const sum = (loads) => loads.reduce((total, one) => total + one, 0);

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

// Which domain a cell's tokens come from most: [code, share].
export function mostlyFrom(picture, phase, index, expert) {
  const at = index * picture.num_experts + expert, loads = picture.domains.map((code) => [code, pick(picture, phase, code)[at]]), total = loads.reduce((all, [, load]) => all + load, 0);
  if (!total) return null;
  const [code, load] = loads.sort((a, b) => b[1] - a[1])[0];
  return [code, load / total];
}
