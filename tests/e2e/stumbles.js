// Runs in the page: what a person with a screen reader, a keyboard or a phone would stumble over.
() => {
  const out = [];
  const named = (node) => (node.getAttribute("aria-label") || node.textContent || node.title || "").trim()
    || (node.getAttribute("aria-labelledby") || "").split(" ").map((id) => document.getElementById(id)?.textContent ?? "").join("").trim();
  const seen = new Set();
  for (const node of document.querySelectorAll("[id]")) { if (seen.has(node.id)) out.push(`id ${node.id} twice`); seen.add(node.id); }
  for (const node of document.querySelectorAll("button, a[href], summary")) if (!named(node)) out.push(`no name: ${node.outerHTML.slice(0, 120)}`);
  for (const node of document.querySelectorAll("input:not([type=hidden]), select, textarea")) if (!node.labels?.length && !named(node)) out.push(`no label: ${node.outerHTML.slice(0, 120)}`);
  for (const node of document.querySelectorAll("svg[role=img], canvas[role=img]")) if (!named(node)) out.push(`no name: ${node.outerHTML.slice(0, 80)}`);
  for (const node of document.querySelectorAll("[aria-labelledby], [aria-describedby], [aria-controls]"))
    for (const key of ["aria-labelledby", "aria-describedby", "aria-controls"])
      for (const id of (node.getAttribute(key) || "").split(" ").filter(Boolean)) if (!document.getElementById(id)) out.push(`${key} points at nothing: ${id}`);
  if (document.querySelectorAll("h1").length !== 1) out.push(`${document.querySelectorAll("h1").length} h1`);
  if (document.documentElement.scrollWidth > innerWidth + 1) out.push(`wider than the window by ${document.documentElement.scrollWidth - innerWidth} px`);
  return out;
}
