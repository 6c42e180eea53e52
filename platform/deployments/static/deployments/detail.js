// One deployment, live: the socket tells that something changed, the page fetches the words from the server.
import { $ } from "/static/console/js/boot.js";
import { connect, showState } from "/static/console/js/live.js";

const page = $("[data-deployment]");
let due = 0, last = 0;
// At most once a second: a start makes a dozen changes, and words that flicker cannot be read.
function refresh() {
  if (due) return;
  due = setTimeout(() => { due = 0; last = Date.now(); document.body.dispatchEvent(new Event("changed")); }, Math.max(0, last + 1000 - Date.now()));
}
let first = true;
connect(`/ws/deployments/${page.dataset.deployment}/`, {
  snapshot() { if (!first) refresh(); first = false; },
  event: refresh,
  state: showState,
});
