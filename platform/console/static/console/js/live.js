// A live socket that heals itself.
//
//   const feed = connect("/ws/jobs/12/", { snapshot(data), event(data), binary(buffer), state(now) });
//   feed.pause(); feed.resume(); feed.resync(); feed.close();    feed.serverNow() → ms since 1970 by the server's clock, or null
//
// Wire: text JSON. First {"type":"snapshot","seq":n,…}: the whole state. Then anything with "seq":n+1.
// A gap in seq, or silence, makes the client ask {"type":"resync"} and the server send a snapshot again.
// An event with a seq that was already seen (a reconnect, a double delivery) is dropped.
// `state` is told {kind: "connecting"|"live"|"lost"|"silent"|"refused"|"paused", since: Date, retryIn?: seconds}.
// What is shown is never claimed to be live when nothing was heard for `quietAfter` milliseconds.
//
// In a page: <span data-live-state> gets lamp and words (see `showState`).
import { $$, t, lamp, el, clock } from "./boot.js";
import { ServerClock } from "./clock.js";

const REFUSED = 4403, GONE = 4404;
const FIRST_RETRY = 500, LAST_RETRY = 15000;
// A few pings at once find a quick round trip; later ones follow the drift, and a machine that woke from sleep.
const PING_FIRST = [0, 400, 1500], PING_EVERY = 15000;

export function connect(path, handlers, { quietAfter = 12000 } = {}) {
  const address = new URL(path, location.href), time = new ServerClock();
  address.protocol = address.protocol.replace("http", "ws");
  let socket, seq = null, tries = 0, heard = null, heardAt = null, timer, watch, pings = [], closed = false, paused = false, asked = false;
  const tell = (kind, more = {}) => handlers.state?.({ kind, since: heard ?? new Date(), ...more });
  const say = (message) => { if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message)); };
  const ping = () => say(time.ping());
  function stopPings() { for (const one of pings) clearTimeout(one); pings = []; }

  function open() {
    clearTimeout(timer);
    tell("connecting"); asked = false;
    socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => { stopPings(); time.forget(); pings = PING_FIRST.map((after) => setTimeout(ping, after)); };
    socket.onmessage = receive;
    socket.onclose = ({ code }) => lost(code);
  }
  function receive({ data }) {
    heard = new Date(); heardAt = performance.now(); tries = 0;
    const message = typeof data === "string" ? JSON.parse(data) : null;
    if (message?.type === "pong") { time.pong(message); return; }
    if (paused) return;
    tell("live");
    if (!message) { handlers.binary?.(data); return; }
    if (message.type === "ping") return;
    if (message.type === "snapshot") { asked = false; seq = message.seq ?? null; handlers.snapshot?.(message); return; }
    if (message.seq != null && seq != null) {
      if (message.seq <= seq) return;
      if (message.seq !== seq + 1) { resync(); return; }
    }
    if (message.seq != null) seq = message.seq;
    handlers.event?.(message);
  }
  function resync() { if (!asked && socket.readyState === WebSocket.OPEN) { asked = true; socket.send('{"type":"resync"}'); } }
  function lost(code) {
    stopPings();
    if (closed) return;
    if (code === REFUSED || code === GONE) { clearInterval(watch); tell("refused"); return; }
    // Backoff with jitter, so that a restarted server is not met by everybody at once.
    const wait = Math.min(LAST_RETRY, FIRST_RETRY * 2 ** tries++) * (0.75 + Math.random() / 2);
    tell("lost", { retryIn: Math.max(1, Math.round(wait / 1000)) });
    timer = setTimeout(open, wait);
  }
  // An idle feed and a dead one look alike, so after some silence we ask; no answer means dead. Silence is measured on a
  // clock that nobody sets.
  function listen() {
    if (closed || heardAt == null || socket.readyState !== WebSocket.OPEN) return;
    if (time.age() > PING_EVERY) ping();
    if (paused) return;
    const silence = performance.now() - heardAt;
    if (silence > 2 * quietAfter) { tell("silent"); socket.close(4000); }
    else if (silence > quietAfter) { resync(); }
  }
  open();
  watch = setInterval(listen, 2000);
  addEventListener("online", () => { if (!closed && socket.readyState > WebSocket.OPEN) open(); });
  return {
    pause() { paused = true; tell("paused"); },
    resume() { paused = false; asked = false; resync(); },
    resync() { asked = false; resync(); },
    close() { closed = true; clearInterval(watch); clearTimeout(timer); stopPings(); socket.close(); },
    serverNow: () => time.now(),
  };
}

const LAMPS = { live: "ok", connecting: "unknown", lost: "caution", silent: "unknown", refused: "danger", paused: "off" };
export function stateWords({ kind, since, retryIn }) {
  if (kind === "live") return t("following live");
  if (kind === "connecting") return t("connecting");
  if (kind === "lost") return t("connection lost, trying again in {seconds} s", { seconds: retryIn });
  if (kind === "silent") return t("silent since {time}: what is shown may be out of date", { time: clock(since) });
  if (kind === "refused") return t("you have no access to this");
  return t("paused by you");
}
// Words change at most once a second: digits that flicker cannot be read. A page that knows more about what it follows
// gives `more`: {state, words} for the time in which the socket is live.
let last = "", lastAt = -Infinity, lastKind = "";
export function showState(now, more) {
  const told = now.kind === "live" && more ? more : { state: LAMPS[now.kind], words: stateWords(now) }, key = told.state + told.words;
  if (key === last || (lastKind === now.kind && performance.now() - lastAt < 900)) return;
  last = key; lastAt = performance.now(); lastKind = now.kind;
  for (const node of $$("[data-live-state]")) { node.classList.add("state", "small"); node.replaceChildren(lamp(told.state), el("span", {}, told.words)); }
}

// base64 of little-endian uint32 counts → Uint32Array.
export function counts32(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Uint32Array(bytes.buffer);
}
