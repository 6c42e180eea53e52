// One deployment, live.
import { $ } from "/static/console/js/boot.js";
import { showState } from "/static/console/js/live.js";
import { watch } from "./watch.js";

watch($("[data-deployment]").dataset.deployment, showState);
