// The table of all answers: it opens their results, sorts, and is saved as CSV. The browser makes it, since the server
// stores no answer.
import { saveFile } from "/save.js";

const table = document.getElementById("summary");
const results = document.getElementById("results");
const parts = new Map(); // tbody of an answer -> what it is sorted by
let number = 0;
let request = 0;

// Add an answer below those of the same request, which stand above those of earlier ones. Return its part of the table.
export function addAnswer(article, previous) {
  const row = JSON.parse(article.dataset.row);
  number += 1;
  if (!previous) request += 1;
  const part = document.createElement("tbody");
  const isOk = row.status === "ok";
  const output = isOk ? (row.withheld ? "withheld" : row.prediction) : "no prediction";
  const name = table.dataset.positive || row.prediction;
  const p = isOk && !row.withheld ? row[`p_${name}`] : null;
  parts.set(part, { number, request, path: row.path, output, p, remark: row.reason || row.remark });
  part.append(summaryRow(parts.get(part), article, `answer-${number}`), detailRow(article, `answer-${number}`));
  if (previous) previous.after(part);
  else table.tHead.after(part);
  table.hidden = false;
  results.hidden = false;
  results.classList.toggle("many", parts.size > 1);
  return part;
}

function summaryRow(values, article, id) {
  const row = document.createElement("tr");
  row.className = "summary";
  const button = document.createElement("button");
  button.type = "button";
  button.className = "toggle";
  button.textContent = values.path || "Unnamed file";
  button.setAttribute("aria-expanded", "false");
  button.setAttribute("aria-controls", id);
  button.addEventListener("click", () => {
    const part = row.parentElement;
    if (button.getAttribute("aria-expanded") === "true") setOpen(part, false);
    else open(part, true);
  });
  const output = cell("output", values.output);
  if (values.remark) output.append(small(values.remark));
  row.append(cell("number", String(values.number)), cell("file", button), output);
  row.append(cell("number", values.p === null ? "–" : values.p.toFixed(3)));
  return row;
}

function cell(name, content) {
  const element = document.createElement(name === "file" ? "th" : "td");
  if (name === "file") element.scope = "row";
  element.className = name;
  element.append(content);
  return element;
}

function small(text) {
  const element = document.createElement("span");
  element.className = "note";
  element.textContent = text;
  return element;
}

function detailRow(article, id) {
  const row = document.createElement("tr");
  row.className = "detail";
  row.id = id;
  row.hidden = true;
  const content = document.createElement("td");
  content.colSpan = 4;
  content.append(article);
  row.append(content);
  return row;
}

function setOpen(part, isOpen) {
  part.querySelector(".detail").hidden = !isOpen;
  part.querySelector(".toggle").setAttribute("aria-expanded", String(isOpen));
}

// Open one result, and close the others, so that the table stays short.
export function open(part, scroll = false) {
  for (const other of parts.keys()) setOpen(other, other === part);
  if (scroll) part.scrollIntoView({ block: "nearest" });
}

export function clearTable() {
  for (const part of parts.keys()) part.remove();
  parts.clear();
  number = 0;
  table.hidden = true;
  results.hidden = true;
  showOrder(null, "none");
}

// The newest request first, and its files in their order.
export function restoreOrder() {
  const sorted = Array.from(parts).sort(([, a], [, b]) => b.request - a.request || a.number - b.number);
  table.append(...sorted.map(([part]) => part));
  showOrder(null, "none");
}

function showOrder(head, order) {
  for (const other of table.tHead.querySelectorAll("th")) other.setAttribute("aria-sort", "none");
  head?.setAttribute("aria-sort", order);
}

function sortBy(button) {
  const head = button.closest("th");
  const ascending = head.getAttribute("aria-sort") !== "ascending";
  const { key } = button.dataset;
  const sign = ascending ? 1 : -1;
  const sorted = Array.from(parts).sort(([, a], [, b]) => {
    const [x, y] = [a[key], b[key]];
    if (isMissing(x) || isMissing(y)) return isMissing(x) - isMissing(y) || a.number - b.number; // last in both orders
    const difference = typeof x === "number" ? x - y : x.localeCompare(y, undefined, { numeric: true });
    return sign * difference || a.number - b.number;
  });
  table.append(...sorted.map(([part]) => part));
  showOrder(head, ascending ? "ascending" : "descending");
}

function isMissing(value) {
  return value === null || value === "";
}

export function saveTable() {
  const rows = Array.from(table.querySelectorAll("article"), (article) => JSON.parse(article.dataset.row));
  const names = Object.keys(rows[0]);
  const lines = [names.map(csvCell), ...rows.map((row) => names.map((name) => csvCell(row[name])))];
  const text = lines.map((line) => line.join(",")).join("\r\n") + "\r\n";
  saveFile(new Blob([text], { type: "text/csv" }), "predictions.csv");
}

// The rules of escape_cell in covid_fastai/files.py: an apostrophe before all that a spreadsheet would run as a formula,
// also after a separator of another country, and after what it skips.
const SKIPPED = /[^\S\t\r\n]|[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f]/.source;
const FORMULA = new RegExp(`^(?:${SKIPPED})*[=+\\-@\uff1d\uff0b\uff0d\uff20]`);
const INNER_FORMULA = new RegExp(`^(?:"|${SKIPPED})*[=+\\-@\uff1d\uff0b\uff0d\uff20]`);
const NUMBER = /^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$/;

function harmless(text) {
  const whole = text.replace(/^'+/, "");
  const parts = text.split(/([;\t\r\n])/);
  const marked = parts.map((part, number) => {
    const bare = part.replace(/^'+/, "");
    if (number === 0) {
      const start = FORMULA.exec(bare);
      const runs = start && start[0].length < whole.length && !NUMBER.test(whole);
      return runs || (!bare && /^[\t\r\n]/.test(whole)) ? `'${part}` : part;
    }
    return number % 2 === 0 && INNER_FORMULA.test(bare) && !NUMBER.test(bare) ? `'${part}` : part;
  });
  return marked.join("");
}

function csvCell(value) {
  if (typeof value === "number") return String(value);
  const text = harmless(value === null || value === undefined ? "" : String(value));
  return /[",;\t\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

for (const button of table.tHead.querySelectorAll("button")) button.addEventListener("click", () => sortBy(button));
