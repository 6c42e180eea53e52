// A socket that tells when something changed in a deployment. The page fetches the words from the server: `changed` on
// the body makes its parts read again (hx-trigger="changed from:body"), the lamps of the shelf among them.
import { connect } from "/static/console/js/live.js";

export function watch(deployment, state) {
  let due = 0, last = 0, first = true;
  // At most once a second: a start makes a dozen changes, and words that flicker cannot be read.
  function refresh() {
    if (due) return;
    due = setTimeout(() => { due = 0; last = Date.now(); document.body.dispatchEvent(new Event("changed")); }, Math.max(0, last + 1000 - Date.now()));
  }
  return connect(`/ws/deployments/${deployment}/`, {
    snapshot() { if (!first) refresh(); first = false; },
    event: refresh,
    state,
  });
}
