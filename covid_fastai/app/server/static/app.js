// Predict without reloading the page: one request per image, so that each result appears as soon as it is ready.
import { addAnswer, clearTable, open, restoreOrder, saveTable } from "/table.js";
import { activateViewer } from "/viewer.js";

const form = document.getElementById("upload");
const files = document.getElementById("files");
const statusLine = document.getElementById("status");
const progress = document.getElementById("progress");
const results = document.getElementById("results");
const answers = document.getElementById("answers");
const tools = document.getElementById("tools");
const examples = document.getElementById("examples");
const button = form.querySelector("button[type=submit]");
const maxBytes = Number(form.dataset.fileBytes);
const MOST_NAMES = 3; // of files without a prediction in the status line; the table names all of them
let running = null; // an AbortController while images are being predicted

function showStatus(text, isError = false) {
  statusLine.textContent = text;
  statusLine.classList.toggle("error", isError);
}

function pause(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}

// Return the element of a file's answer.
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
    if (!(response.headers.get("Content-Type") || "").startsWith("text/html")) throw new Error(JSON.parse(text).error);
    const parsed = new DOMParser().parseFromString(text, "text/html").querySelector("article");
    if (!parsed) throw new Error("the response of the server is invalid.");
    return document.importNode(parsed, true);
  }
}

// A file that the server has not answered has its row, too.
function refuse(file, reason) {
  const article = document.getElementById("refused").content.querySelector("article").cloneNode(true);
  article.querySelector("h3").textContent = file.name;
  article.querySelector(".reason").textContent = reason;
  article.dataset.row = JSON.stringify({ ...JSON.parse(article.dataset.row), path: file.name, reason });
  return article;
}

function markDrawing(article) {
  const row = JSON.parse(article.dataset.row);
  const note = document.createElement("p");
  note.className = "remark drawing";
  note.textContent = "A drawing by this package, not a radiograph.";
  article.querySelector(".text")?.prepend(note);
  article.dataset.row = JSON.stringify({ ...row, remark: `${note.textContent} ${row.remark}`.trim() });
}

async function predictAll(chosen, { isDrawing = false } = {}) {
  const images = Array.from(chosen);
  if (!images.length || running) return;
  running = new AbortController();
  const { signal } = running;
  const failures = [];
  let part = null;
  button.disabled = true;
  answers.setAttribute("aria-busy", "true");
  progress.max = images.length;
  progress.value = 0;
  progress.hidden = images.length < 2;
  restoreOrder();
  for (const [number, file] of images.entries()) {
    showStatus(`Image ${number + 1} of ${images.length}: ${file.name}`);
    let article = null;
    try {
      article = await predict(file, signal);
      if (isDrawing) markDrawing(article);
      if (JSON.parse(article.dataset.row).status !== "ok") failures.push(file.name);
    } catch (error) {
      if (!signal.aborted) {
        failures.push(`${file.name}: ${error.message}`);
        article = refuse(file, error.message);
      }
    }
    if (signal.aborted) break;
    activateViewer(article);
    part = addAnswer(article, part);
    tools.hidden = false;
    progress.value = number + 1;
    if (number === 0) {
      open(part);
      results.scrollIntoView({ block: "nearest" });
    }
  }
  answers.removeAttribute("aria-busy");
  button.disabled = false;
  progress.hidden = true;
  if (!signal.aborted) {
    showStatus(summarise(images.length, failures), failures.length > 0);
    form.reset();
  }
  running = null;
}

function summarise(total, failures) {
  const text = `${total - failures.length} of ${total} images classified.`;
  if (!failures.length) return text;
  const more = failures.length > MOST_NAMES ? `; and ${failures.length - MOST_NAMES} more, see the table` : "";
  return `${text} No prediction: ${failures.slice(0, MOST_NAMES).join("; ")}${more}`;
}

form.addEventListener("submit", (event) => { event.preventDefault(); predictAll(files.files); });
document.getElementById("table").addEventListener("click", saveTable);
document.getElementById("clear").addEventListener("click", () => {
  if (running) running.abort();
  clearTable();
  tools.hidden = true;
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
for (const example of examples.querySelectorAll("button")) {
  example.addEventListener("click", async () => {
    const response = await fetch(`/${example.dataset.file}`);
    const blob = await response.blob();
    predictAll([new File([blob], example.dataset.file, { type: blob.type })], { isDrawing: true });
  });
}
examples.hidden = false;
let last = null; // the answers to a form that was sent without scripts
for (const article of answers.querySelectorAll("article")) {
  activateViewer(article);
  last = addAnswer(article, last);
  tools.hidden = false;
}
