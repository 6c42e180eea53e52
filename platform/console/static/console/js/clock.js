// The server's clock as a browser may know it: never by its own, which may be hours off or be set while the page is open.
//
//   const time = new ServerClock();
//   socket.send(JSON.stringify(time.ping()));      …later…      time.pong({t, server_ms});
//   time.now() → ms since 1970 by the server, or null before the first answer
// A pong says what the server's clock showed somewhere within the round trip; the middle errs by half of it at most, so the
// quickest of the last answers is believed.
const KEPT = 8, TOO_SLOW_MS = 5000, DRIFT_MS = 20;

export class ServerClock {
  constructor(monotonic = () => performance.now()) { this.monotonic = monotonic; this.answers = []; this.asked = -Infinity; }
  ping() { this.asked = this.monotonic(); return { type: "ping", t: this.asked }; }
  pong({ t: sent, server_ms: told }) {
    const here = this.monotonic(), trip = here - sent;
    if (!Number.isFinite(told) || !(trip >= 0) || trip > TOO_SLOW_MS) return;
    const offset = told + trip / 2 - here;
    // Answers that cannot both be true: a clock was set or this machine slept, and the later one counts.
    this.answers = this.answers.filter((one) => Math.abs(one.offset - offset) <= (one.trip + trip) / 2 + DRIFT_MS);
    this.answers.push({ trip, offset });
    if (this.answers.length > KEPT) this.answers.shift();
  }
  // A new socket may lead to another server, and a machine may have slept: then the answers so far say nothing.
  forget() { this.answers = []; this.asked = -Infinity; }
  age() { return this.monotonic() - this.asked; }
  // Half of the quickest round trip: by so much `now` may be wrong.
  error() { return this.answers.length ? Math.min(...this.answers.map(({ trip }) => trip)) / 2 : null; }
  now() {
    if (!this.answers.length) return null;
    const best = this.answers.reduce((one, other) => (other.trip < one.trip ? other : one));
    return this.monotonic() + best.offset;
  }
}
