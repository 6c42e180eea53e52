// A live socket that heals itself.
//
//   const feed = connect("/ws/jobs/12/", { snapshot(data), event(data), binary(buffer), state(now) });
//   feed.pause(); feed.resume(); feed.close();
//
// Wire: text JSON. First {"type":"snapshot","seq":n,…}: the whole state. Then anything with "seq":n+1.
// A gap in seq, or silence, makes the client ask {"type":"resync"} and the server send a snapshot again.
// An event with a seq that was already seen (a reconnect, a double delivery) is dropped.
// `state` is told {kind: "connecting"|"live"|"lost"|"silent"|"refused"|"paused", since: Date, retryIn?: seconds}.
// What is shown is never claimed to be live when nothing was heard for `quietAfter` milliseconds.
//
// In a page: <span data-live-state> gets lamp and words (see `showState`).
import { $$, t, lamp, el, clock } from "./boot.js";

const REFUSED = 4403, GONE = 4404;
const FIRST_RETRY = 500, LAST_RETRY = 15000;

export function connect(path, handlers, { quietAfter = 12000 } = {}) {
  const address = new URL(path, location.href);
  address.protocol = address.protocol.replace("http", "ws");
  let socket, seq = null, tries = 0, heard = null, timer, watch, closed = false, paused = false, asked = false;
  const tell = (kind, more = {}) => handlers.state?.({ kind, since: heard ?? new Date(), ...more });

  function open() {
    clearTimeout(timer);
    tell("connecting");
    socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    socket.onmessage = receive;
    socket.onclose = ({ code }) => lost(code);
  }
  function receive({ data }) {
    heard = new Date(); tries = 0; asked = false;
    if (paused) return;
    tell("live");
    if (typeof data !== "string") { handlers.binary?.(data); return; }
    const message = JSON.parse(data);
    if (message.type === "ping") return;
    if (message.type === "snapshot") { seq = message.seq ?? null; handlers.snapshot?.(message); return; }
    if (message.seq != null && seq != null) {
      if (message.seq <= seq) return;
      if (message.seq !== seq + 1) { resync(); return; }
    }
    if (message.seq != null) seq = message.seq;
    handlers.event?.(message);
  }
  function resync() { if (!asked && socket.readyState === WebSocket.OPEN) { asked = true; socket.send('{"type":"resync"}'); } }
  function lost(code) {
    if (closed) return;
    if (code === REFUSED || code === GONE) { clearInterval(watch); tell("refused"); return; }
    // Backoff with jitter, so that a restarted server is not met by everybody at once.
    const wait = Math.min(LAST_RETRY, FIRST_RETRY * 2 ** tries++) * (0.75 + Math.random() / 2);
    tell("lost", { retryIn: Math.max(1, Math.round(wait / 1000)) });
    timer = setTimeout(open, wait);
  }
  // An idle feed and a dead one look alike, so after some silence we ask; no answer means dead.
  function listen() {
    if (closed || paused || !heard || socket.readyState !== WebSocket.OPEN) return;
    const silence = Date.now() - heard;
    if (silence > 2 * quietAfter) { tell("silent"); socket.close(4000); }
    else if (silence > quietAfter) { resync(); }
  }
  open();
  watch = setInterval(listen, 2000);
  addEventListener("online", () => { if (!closed && socket.readyState > WebSocket.OPEN) open(); });
  return {
    pause() { paused = true; tell("paused"); },
    resume() { paused = false; asked = false; resync(); },
    close() { closed = true; clearInterval(watch); clearTimeout(timer); socket.close(); },
  };
}

const LAMPS = { live: "ok", connecting: "unknown", lost: "caution", silent: "unknown", refused: "danger", paused: "off" };
export function stateWords({ kind, since, retryIn }, behind) {
  if (kind === "live") return behind == null ? t("following live") : t("live, {seconds} s behind", { seconds: behind.toFixed(1) });
  if (kind === "connecting") return t("connecting");
  if (kind === "lost") return t("connection lost, trying again in {seconds} s", { seconds: retryIn });
  if (kind === "silent") return t("silent since {time}: what is shown may be out of date", { time: clock(since) });
  if (kind === "refused") return t("you have no access to this");
  return t("paused by you");
}
// Words change at most once a second: digits that flicker cannot be read.
let last = "", lastAt = 0;
export function showState(now, behind) {
  const words = stateWords(now, behind), key = now.kind + words;
  if (key === last || (last.startsWith(now.kind) && Date.now() - lastAt < 1000)) return;
  last = key; lastAt = Date.now();
  for (const node of $$("[data-live-state]")) { node.classList.add("state", "small"); node.replaceChildren(lamp(LAMPS[now.kind]), el("span", {}, words)); }
}

// base64 of little-endian uint32 counts → Uint32Array.
export function counts32(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Uint32Array(bytes.buffer);
}
