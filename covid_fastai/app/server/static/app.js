// The page without reloads: one request a picture, so that many can be asked about and each answer comes when it is there.
"use strict";

const form = document.getElementById("ask");
const files = document.getElementById("files");
const state = document.getElementById("state");
const results = document.getElementById("results");
const answers = document.getElementById("answers");
const tools = document.getElementById("tools");
const button = form.querySelector("button");
const largest = Number(form.dataset.fileBytes);
let running = null; // an AbortController while pictures are asked about

function say(text, isError = false) {
  state.textContent = text;
  state.classList.toggle("error", isError);
}

function wake(article) {
  const slider = article.querySelector(".opacity");
  if (!slider) return;
  const heat = article.querySelector(".heat");
  slider.closest("label").hidden = false;
  slider.addEventListener("input", () => { heat.style.opacity = slider.value / 100; });
}

function show(html) {
  const parsed = new DOMParser().parseFromString(html, "text/html").querySelector("article");
  if (!parsed) throw new Error("The server's answer cannot be read.");
  const article = document.importNode(parsed, true);
  wake(article);
  answers.append(article);
  results.hidden = false;
  tools.hidden = false;
  return JSON.parse(article.dataset.row);
}

function pause(seconds, signal) {
  return new Promise((done) => {
    const timer = setTimeout(done, 1000 * seconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); done(); }, { once: true });
  });
}

async function ask(file, signal) {
  if (file.size > largest) throw new Error(`it has more than ${largest / 1048576} MiB.`);
  for (let tries = 0; ; tries += 1) {
    const body = new FormData();
    body.append("files", file);
    const response = await fetch("/answer", { method: "POST", body, signal });
    const busy = response.status === 429 || response.status === 503;
    if (busy && tries < 20 && !signal.aborted) {
      await pause(Number(response.headers.get("Retry-After")) || 2, signal);
      continue;
    }
    const text = await response.text();
    if ((response.headers.get("Content-Type") || "").startsWith("text/html")) return show(text);
    throw new Error(JSON.parse(text).error);
  }
}

async function askAll(chosen) {
  const all = Array.from(chosen);
  if (!all.length || running) return;
  running = new AbortController();
  const { signal } = running;
  const failures = [];
  button.disabled = true;
  answers.setAttribute("aria-busy", "true");
  for (const [number, file] of all.entries()) {
    if (signal.aborted) break;
    say(`Asking about ${number + 1} of ${all.length}: ${file.name}`);
    try {
      const row = await ask(file, signal);
      if (row.status !== "ok") failures.push(file.name);
    } catch (error) {
      if (!signal.aborted) failures.push(`${file.name}: ${error.message}`);
    }
  }
  answers.removeAttribute("aria-busy");
  button.disabled = false;
  if (!signal.aborted) {
    const answered = all.length - failures.length;
    const lost = failures.length ? ` Without an answer: ${failures.join("; ")}` : "";
    say(`${answered} of ${all.length} answered.${lost}`, failures.length > 0);
    form.reset();
  }
  running = null;
}

// A table of all answers, made here: the server keeps none.

function cell(value) {
  if (typeof value === "number") return String(value);
  let text = value === null || value === undefined ? "" : String(value);
  if (/^[=+\-@\t\r]/.test(text)) text = `'${text}`; // a spreadsheet would take it for a formula
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

form.addEventListener("submit", (event) => { event.preventDefault(); askAll(files.files); });
document.getElementById("table").addEventListener("click", download);
document.getElementById("clear").addEventListener("click", () => {
  if (running) running.abort();
  answers.replaceChildren();
  tools.hidden = true;
  results.hidden = true;
  say("Cleared.");
  files.focus();
});
for (const name of ["dragover", "drop", "dragleave"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    form.classList.toggle("over", name === "dragover");
    if (name === "drop") askAll(event.dataTransfer.files);
  });
}
answers.querySelectorAll("article").forEach(wake);
if (answers.children.length) tools.hidden = false;
