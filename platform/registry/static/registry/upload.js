// Forms with data-upload send their file with a progress bar, and take files that are dropped on them.
// Without this module they work as plain forms.
//
// <form data-upload enctype="multipart/form-data"> with .dropzone > input[type=file], progress, [data-upload-state]
import { $, $$, t, toast, percent } from "/static/console/js/boot.js";

const UNITS = ["B", "kB", "MB", "GB", "TB"];
function size(bytes) {
  let unit = 0;
  for (; bytes >= 999.5 && unit < UNITS.length - 1; unit++) bytes /= 1000;
  return `${bytes.toFixed(unit && bytes < 100 ? 1 : 0)}\u202f${UNITS[unit]}`;
}

function send(form) {
  const bar = $("progress", form), state = $("[data-upload-state]", form), button = $("[type=submit]", form), call = new XMLHttpRequest();
  call.open("POST", form.action);
  bar.hidden = false;
  button.disabled = true;
  call.upload.addEventListener("progress", (event) => {
    if (!event.lengthComputable) return;
    const share = event.loaded / event.total;
    bar.value = share;
    state.textContent = share === 1 ? t("All bytes are there; checking them") : t("{sent} of {size}, {percent}", { sent: size(event.loaded), size: size(event.total), percent: percent(share) });
  });
  call.addEventListener("load", () => {
    // The server answers with a redirect that was followed, or with a problem in JSON.
    if (call.status < 400) { location.assign(call.responseURL || location.href); return; }
    bar.hidden = true;
    button.disabled = false;
    let detail = `${call.status}`;
    try { detail = JSON.parse(call.responseText).detail; } catch { /* not JSON: the number must do */ }
    state.textContent = detail;
    toast(detail, { kind: "danger" });
  });
  call.addEventListener("error", () => { bar.hidden = true; button.disabled = false; toast(t("The upload was cut off. Send the file again."), { kind: "danger" }); });
  call.setRequestHeader("Accept", "application/json, text/html");
  call.send(new FormData(form));
}

for (const form of $$("form[data-upload]")) {
  const zone = $(".dropzone", form), input = $("input[type=file]", form);
  form.addEventListener("submit", (event) => { event.preventDefault(); if (form.reportValidity()) send(form); });
  for (const type of ["dragenter", "dragover"]) zone.addEventListener(type, (event) => { event.preventDefault(); zone.classList.add("over"); });
  for (const type of ["dragleave", "drop"]) zone.addEventListener(type, () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => { event.preventDefault(); input.files = event.dataTransfer.files; });
}

// After an upload the import form opens by itself; a link to ?import=upload opens it for one.
const asked = new URLSearchParams(location.search);
if (asked.has("upload") || asked.get("import") === "upload") { $('[data-open="import"]')?.click(); $("#from-upload-tab")?.click(); }
