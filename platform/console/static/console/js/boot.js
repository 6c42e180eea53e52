// Theme, words, toasts, dialogs and shortcuts: the small behaviours every page shares.
//
// Data attributes (any template may use them):
//   data-open="ID"            button: shows the <dialog id="ID">       data-close   button inside a dialog
//   data-opened               dialog: shown at once, because its form came back with errors
//   data-copy="TEXT"          button: copies TEXT
//   data-toast="TEXT"         button: shows a toast
//   data-theme-toggle         button: as the system, day or night
//   data-expand               button with aria-controls: shows or hides what it controls
//   data-filter="SELECTOR"    input: hides those elements whose text does not hold what is typed
//   data-ago                  <time datetime>: kept fresh, once a minute
//   data-local                <time datetime>: shown in the reader's own zone
//   data-shortcut="x"         link in the rail: "g" then "x" goes there
//   data-refresh="5"          element with an id: read again from the server every 5 s while the page is looked at
//   data-autosubmit           select or checkbox: sends its form when it changes
//   <div class="tabs" role="tablist"> with role="tab" aria-controls    arrow keys walk
//   <div class="segment" role="group"> with <button value aria-pressed>  dispatches "choose" {detail: value}
// htmx: the CSRF token is added to every request; a response header HX-Trigger {"toast": {...}} shows a toast.

export const $ = (selector, from = document) => from.querySelector(selector);
export const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];
const root = document.documentElement, ASPECTS_MS = 10000;
export const lang = root.lang.startsWith("zh") ? "zh" : "en";
export const reduced = matchMedia("(prefers-reduced-motion: reduce)");

// Words come from the server's gettext; English is the key, so a missing word still reads.
const words = JSON.parse($("#words")?.textContent ?? "{}");
export function t(text, values = {}) {
  return (words[text] ?? text).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
export const fmt = (value, digits = 0) => {
  if (value == null || !Number.isFinite(value)) return "—";
  const text = Math.abs(value).toLocaleString(lang === "zh" ? "zh-CN" : "en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return value < 0 && /[1-9]/.test(text) ? `−${text}` : text;
};
export const percent = (share, digits = 0) => (share == null ? "—" : `${fmt(share * 100, digits)}${lang === "zh" ? "%" : "\u202f%"}`);
export const clock = (date) => date.toLocaleTimeString(lang === "zh" ? "zh-CN" : "en-GB", { hour12: false });

// Elements are built with nodes, never with strings: what a user typed cannot become markup.
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    if (key === "on") for (const [type, run] of Object.entries(value)) node.addEventListener(type, run);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}
export const lamp = (kind) => el("span", { class: "lamp", "data-state": kind, "aria-hidden": "true" });
export const state = (kind, text, reason) => el("span", { class: "state" }, lamp(kind), el("span", {}, text), reason ? el("span", { class: "reason" }, reason) : null);
export const domainChip = ({ code, name, colour }) =>
  el("span", { class: "domain", "data-colour": colour ?? 0 }, el("i", { "aria-hidden": "true" }, code.slice(0, 3).toUpperCase()), name ?? code);

export const csrf = () => document.body.dataset.csrf ?? "";
export const post = (url, body) =>
  fetch(url, { method: "POST", credentials: "same-origin", headers: { "Content-Type": "application/json", "X-CSRFToken": csrf() }, body: JSON.stringify(body ?? {}) });

export function toast(text, { kind, undo } = {}) {
  const box = el("div", { class: "toast", role: "status" }, kind ? lamp(kind) : null, el("span", {}, text),
    undo ? el("button", { type: "button", on: { click: () => { undo(); box.remove(); } } }, t("Undo")) : null);
  $(".toasts").append(box);
  leave(box);
}
function leave(box) {
  // An error stays until it is dismissed; the rest goes by itself, but never under the pointer.
  const close = el("button", { type: "button", "aria-label": t("Dismiss"), class: "dismiss", on: { click: () => box.remove() } }, "×");
  box.append(close);
  if (box.classList.contains("error")) return;
  let over = false;
  box.addEventListener("pointerenter", () => { over = true; });
  box.addEventListener("pointerleave", () => { over = false; });
  const tick = () => (over || box.contains(document.activeElement) ? setTimeout(tick, 2000) : box.remove());
  setTimeout(tick, 7000);
}
$$(".toasts > .toast").forEach(leave);
document.addEventListener("toast", (event) => toast(event.detail.text ?? event.detail.value, event.detail));

// A form that came back with errors: its dialog opens again, and the first field that is wrong has the focus.
export function focusError(box) {
  const wrong = $$(".field:has(.error)", box).filter((field) => !field.closest("dialog") || box !== document);
  const controls = wrong.flatMap((field) => $$("input:not([type=hidden]), select, textarea", field));
  controls.find((one) => !one.disabled && one.checkVisibility())?.focus();
}
const opened = $("dialog[data-opened]");
opened?.showModal();
focusError(opened ?? document);

// Three choices, one after the other: as the system, the other panel, the system's own held fast, and back to as the system.
const night = matchMedia("(prefers-color-scheme: dark)"), ofSystem = () => (night.matches ? "dark" : "light");
const THEME_WORDS = { auto: "Panel: as the system", light: "Panel: day", dark: "Panel: night" };
function showTheme() {
  const chosen = root.dataset.themeChoice;
  root.dataset.theme = chosen === "auto" ? ofSystem() : chosen;
  dispatchEvent(new Event("themechange"));
}
function nextTheme() {
  const system = ofSystem(), other = system === "dark" ? "light" : "dark", order = ["auto", other, system];
  const next = order[(order.indexOf(root.dataset.themeChoice) + 1) % order.length];
  root.dataset.themeChoice = next;
  document.cookie = `turnout_theme=${next}; path=/; max-age=31536000; samesite=lax`;
  showTheme();
  toast(t(THEME_WORDS[next]));
}
night.addEventListener("change", () => { if (root.dataset.themeChoice === "auto") showTheme(); });

function selectTab(tab) {
  for (const other of $$('[role="tab"]', tab.parentElement)) {
    const on = other === tab;
    other.setAttribute("aria-selected", on);
    other.tabIndex = on ? 0 : -1;
    const panel = document.getElementById(other.getAttribute("aria-controls"));
    if (panel) panel.hidden = !on;
  }
  tab.dispatchEvent(new CustomEvent("tabshown", { bubbles: true }));
}

const ACTIONS = {
  "[data-theme-toggle]": nextTheme,
  ".menu": (hit) => hit.setAttribute("aria-expanded", hit.getAttribute("aria-expanded") !== "true"),
  "[data-expand], .expander": (hit) => {
    const open = hit.getAttribute("aria-expanded") !== "true";
    hit.setAttribute("aria-expanded", open);
    document.getElementById(hit.getAttribute("aria-controls")).hidden = !open;
  },
  "[data-open]": (hit) => { const box = document.getElementById(hit.dataset.open); box.showModal(); box.dispatchEvent(new CustomEvent("opened", { detail: hit.dataset })); },
  "[data-close]": (hit) => hit.closest("dialog").close(),
  "[data-toast]": (hit) => toast(hit.dataset.toast),
  "[data-copy], [data-copy-from]": async (hit) => {
    const text = hit.dataset.copy || document.getElementById(hit.dataset.copyFrom)?.textContent || "";
    try { await navigator.clipboard.writeText(text); toast(t("Copied"), { kind: "ok" }); }
    catch { toast(t("Could not copy; select the text and copy it by hand"), { kind: "caution" }); }
  },
  '[role="tab"]': selectTab,
  "[aria-pressed]": (hit) => {
    const group = hit.closest(".segment, .chips");
    if (!group) return;
    for (const other of $$("[aria-pressed]", group)) other.setAttribute("aria-pressed", other === hit);
    group.dispatchEvent(new CustomEvent("choose", { detail: hit.value, bubbles: true }));
  },
};
document.addEventListener("click", (event) => {
  for (const [selector, act] of Object.entries(ACTIONS)) {
    const hit = event.target.closest(selector);
    if (hit) { act(hit); return; }
  }
  // A click on the backdrop of a dialog closes it; a click elsewhere closes open menus.
  if (event.target.matches("dialog")) { const box = event.target.getBoundingClientRect(); if (event.clientX < box.left || event.clientX > box.right || event.clientY < box.top || event.clientY > box.bottom) event.target.close(); }
  for (const menu of $$("details.pop[open]")) if (!menu.contains(event.target)) menu.open = false;
});
document.addEventListener("change", (event) => { if (event.target.matches("[data-autosubmit]")) event.target.form.requestSubmit(); });
document.addEventListener("input", (event) => {
  if (!event.target.matches("[data-filter]")) return;
  const wanted = event.target.value.trim().toLowerCase();
  for (const node of $$(event.target.dataset.filter)) node.hidden = !node.textContent.toLowerCase().includes(wanted);
});

// Going by keyboard: "/" finds a page, "g" then a letter goes there. Single keys never act in a field.
const inField = (target) => target.matches?.("input, textarea, select, [contenteditable]");
let going = 0;
document.addEventListener("keydown", (event) => {
  if (event.target.matches?.('[role="tab"]')) walkTabs(event);
  if (event.key === "Escape") { for (const menu of $$("details.pop[open]")) { menu.open = false; $("summary", menu).focus(); } $(".menu")?.setAttribute("aria-expanded", "false"); }
  if (inField(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") { event.preventDefault(); if (!$("#find")?.open) $('[data-open="find"]')?.click(); }
  else if (event.key === "g") going = event.timeStamp;
  else if (event.timeStamp - going < 1200) { const link = $(`[data-shortcut="${CSS.escape(event.key)}"]`); going = 0; if (link) location.assign(link.href); }
});
function walkTabs(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const all = $$('[role="tab"]', event.target.parentElement), next = all[(all.indexOf(event.target) + step + all.length) % all.length];
  event.preventDefault(); next.focus(); selectTab(next);
}

const finder = $("#find");
if (finder) {
  const list = $("#find-list"), text = $("#find-text");
  const fill = () => {
    const wanted = text.value.trim().toLowerCase();
    const links = $$(".rail .line a").filter((link) => $("span", link).textContent.toLowerCase().includes(wanted));
    list.replaceChildren(...(links.length ? links.map((link, i) => el("li", { "aria-selected": String(i === 0) }, el("a", { href: link.href }, $("span", link).textContent), link.dataset.shortcut ? el("kbd", {}, `g ${link.dataset.shortcut}`) : null)) : [el("li", { class: "quiet" }, t("Nothing matches"))]));
  };
  finder.addEventListener("opened", () => { text.value = ""; fill(); text.focus(); });
  text.addEventListener("input", fill);
  finder.addEventListener("keydown", (event) => {
    const items = $$("li:has(a)", list), at = items.findIndex((item) => item.getAttribute("aria-selected") === "true"), step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && items.length) { event.preventDefault(); items[at].setAttribute("aria-selected", "false"); items[(at + step + items.length) % items.length].setAttribute("aria-selected", "true"); }
    else if (event.key === "Enter" && event.target === text && items[at]) { event.preventDefault(); $("a", items[at]).click(); }
  });
}

// Times: relative ones stay true while the page stays open, absolute ones are in the reader's zone.
export function agoText(date, now = Date.now()) {
  const seconds = Math.max(0, Math.round((now - date) / 1000));
  if (seconds < 5) return t("just now");
  if (seconds < 60) return t("{count} s ago", { count: seconds });
  if (seconds < 3600) return t("{count} min ago", { count: Math.floor(seconds / 60) });
  if (seconds < 86400) return t("{count} h ago", { count: Math.floor(seconds / 3600) });
  return t("{count} d ago", { count: Math.floor(seconds / 86400) });
}
function freshen() {
  for (const node of $$("time[data-ago]")) node.textContent = agoText(new Date(node.dateTime));
  for (const node of $$("time[data-local]")) node.textContent = clock(new Date(node.dateTime));
}
setInterval(() => { if (!document.hidden) freshen(); }, 30000);
freshen();

// Parts that the server knows better by now. Only what differs is exchanged, so a status speaks only when its words change,
// and never under somebody's hands: not while a dialog is open or the focus is inside.
const refreshed = $$("[data-refresh]");
// The form token is masked anew in every answer; it is no difference.
const faceOf = (node) => node.outerHTML.replace(/name="csrfmiddlewaretoken" value="[^"]*"/g, "");
const seen = new Map();
async function refresh() {
  if (document.hidden || $("dialog[open], details.pop[open]") || $$("[data-refresh]").some((node) => node.contains(document.activeElement))) return;
  const answer = await fetch(location.href, { credentials: "same-origin", headers: { Accept: "text/html" } }).catch(() => null);
  if (!answer?.ok || answer.redirected) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const old of $$("[data-refresh]")) {
    const now = fresh.getElementById(old.id);
    if (now && faceOf(now) !== seen.get(old.id)) { seen.set(old.id, faceOf(now)); old.replaceWith(document.adoptNode(now)); }
  }
  freshen();
}
if (refreshed.length) {
  for (const node of refreshed) seen.set(node.id, faceOf(node));
  setInterval(refresh, Math.min(...refreshed.map((node) => Number(node.dataset.refresh) || 5)) * 1000);
}

// The lamps of the shelf are true while the page stays open: read again now and then, and when a live page hears of a change.
async function readAspects() {
  const old = $("#aspects");
  if (!old || document.hidden || old.contains(document.activeElement)) return;
  const answer = await fetch(old.dataset.url, { credentials: "same-origin", headers: { Accept: "text/html" } }).catch(() => null);
  if (!answer?.ok || answer.redirected) return;
  const now = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("aspects");
  if (now && now.outerHTML !== old.outerHTML) old.replaceChildren(...now.childNodes);
}
if ($("#aspects")) { setInterval(readAspects, ASPECTS_MS); document.body.addEventListener("changed", readAspects); document.addEventListener("visibilitychange", readAspects); }

document.addEventListener("htmx:configRequest", (event) => { event.detail.headers["X-CSRFToken"] = csrf(); });
document.addEventListener("htmx:responseError", (event) => toast(t("The server refused this ({status}).", { status: event.detail.xhr.status }), { kind: "danger" }));
document.addEventListener("htmx:sendError", () => toast(t("No answer from the server. Check the connection and try again."), { kind: "danger" }));
document.addEventListener("htmx:afterSettle", freshen);
