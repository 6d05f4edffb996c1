// Predict without reloading the page: one request per image, so that each result appears as soon as it is ready.
"use strict";

const form = document.getElementById("upload");
const files = document.getElementById("files");
const statusLine = document.getElementById("status");
const results = document.getElementById("results");
const answers = document.getElementById("answers");
const tools = document.getElementById("tools");
const button = form.querySelector("button");
const maxBytes = Number(form.dataset.fileBytes);
let running = null; // an AbortController while images are being predicted

function showStatus(text, isError = false) {
  statusLine.textContent = text;
  statusLine.classList.toggle("error", isError);
}

function activateSlider(article) {
  const slider = article.querySelector(".opacity");
  if (!slider) return;
  const saliency = article.querySelector(".saliency");
  slider.closest("label").hidden = false;
  slider.addEventListener("input", () => { saliency.style.opacity = slider.value / 100; });
}

function showAnswer(html) {
  const parsed = new DOMParser().parseFromString(html, "text/html").querySelector("article");
  if (!parsed) throw new Error("the response of the server is invalid.");
  const article = document.importNode(parsed, true);
  activateSlider(article);
  answers.append(article);
  results.hidden = false;
  tools.hidden = false;
  return JSON.parse(article.dataset.row);
}

function pause(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}

async function predict(file, signal) {
  if (file.size > maxBytes) throw new Error(`it has more than ${maxBytes / 1048576} MiB.`);
  for (let retries = 0; ; retries += 1) {
    const body = new FormData();
    body.append("files", file);
    const response = await fetch("/answer", { method: "POST", body, signal });
    const busy = response.status === 429 || response.status === 503;
    if (busy && retries < 20 && !signal.aborted) {
      await pause(Number(response.headers.get("Retry-After")) || 2, signal);
      continue;
    }
    const text = await response.text();
    if ((response.headers.get("Content-Type") || "").startsWith("text/html")) return showAnswer(text);
    throw new Error(JSON.parse(text).error);
  }
}

async function predictAll(chosen) {
  const images = Array.from(chosen);
  if (!images.length || running) return;
  running = new AbortController();
  const { signal } = running;
  const failures = [];
  button.disabled = true;
  answers.setAttribute("aria-busy", "true");
  for (const [number, file] of images.entries()) {
    if (signal.aborted) break;
    showStatus(`Image ${number + 1} of ${images.length}: ${file.name}`);
    try {
      const row = await predict(file, signal);
      if (row.status !== "ok") failures.push(file.name);
    } catch (error) {
      if (!signal.aborted) failures.push(`${file.name}: ${error.message}`);
    }
  }
  answers.removeAttribute("aria-busy");
  button.disabled = false;
  if (!signal.aborted) {
    const predicted = images.length - failures.length;
    const failed = failures.length ? ` No prediction: ${failures.join("; ")}` : "";
    showStatus(`${predicted} of ${images.length} images classified.${failed}`, failures.length > 0);
    form.reset();
  }
  running = null;
}

// The browser makes the table of all answers, since the server stores none.

function cell(value) {
  if (typeof value === "number") return String(value);
  let text = value === null || value === undefined ? "" : String(value);
  if (/^[=+\-@\t\r]/.test(text)) text = `'${text}`; // else a spreadsheet would interpret it as a formula
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function download() {
  const rows = Array.from(answers.querySelectorAll("article"), (article) => JSON.parse(article.dataset.row));
  const names = Object.keys(rows[0]);
  const lines = [names.map(cell), ...rows.map((row) => names.map((name) => cell(row[name])))];
  const text = lines.map((line) => line.join(",")).join("\r\n") + "\r\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "predictions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

form.addEventListener("submit", (event) => { event.preventDefault(); predictAll(files.files); });
document.getElementById("table").addEventListener("click", download);
document.getElementById("clear").addEventListener("click", () => {
  if (running) running.abort();
  answers.replaceChildren();
  tools.hidden = true;
  results.hidden = true;
  showStatus("Cleared.");
  files.focus();
});
for (const name of ["dragover", "drop", "dragleave"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    form.classList.toggle("over", name === "dragover");
    if (name === "drop") predictAll(event.dataTransfer.files);
  });
}
answers.querySelectorAll("article").forEach(activateSlider);
if (answers.children.length) tools.hidden = false;
