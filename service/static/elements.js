// Elements, tables and numbers. Text goes in as text nodes only; nothing here parses HTML.

export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((child) => child != null && child !== false));
  return node;
}

const whole = new Intl.NumberFormat("en");
export const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
export const count = (value) => (value == null ? "–" : whole.format(value));
export const real = (value) => (value == null ? "–" : String(Number(value.toPrecision(4))));
export const percent = (share) => (share == null ? "–" : `${(100 * share).toFixed(share > 0 && share < 0.01 ? 2 : 1)} %`);
export const day = (seconds) => new Date(1000 * seconds).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
export const many = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
export const part = encodeURIComponent;

// How long ago, by the server's clock. Null: not since the server was started.
export function ago(seconds, now) {
  if (seconds == null) return "not since the server's start";
  const past = Math.max(0, now - seconds);
  if (past < 60) return past < 20 ? "just now" : `${Math.floor(past / 10) * 10} s ago`;
  if (past < 3600) return `${Math.floor(past / 60)} min ago`;
  if (past < 172800) return `${Math.floor(past / 3600)} h ago`;
  return `${Math.floor(past / 86400)} days ago`;
}

// Columns: [title, cell(row), numeric?, explanation?]. The first cell is the row's heading, never to the right.
export function table(caption, columns, rows, high = false) {
  const head = columns.map(([title, , numeric, says]) => el("th", { scope: "col", class: numeric ? "number" : null, title: says }, title));
  const body = rows.map((row) => el("tr", {}, columns.map(([title, cell, numeric], at) =>
    (at ? el("td", { class: numeric ? "number" : null, "data-title": title }, cell(row)) : el("th", { scope: "row" }, cell(row))))));
  const inner = el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, head)), el("tbody", {}, body));
  return el("div", { class: high ? "scroll high" : "scroll", role: "region", tabindex: 0, "aria-label": caption }, inner);
}

// A table that changes in place, cell by cell, so that focus and scrolling stay where they are.
export class Grid {
  constructor(caption, columns, high = false) {
    Object.assign(this, { caption, columns, high, node: table(caption, columns, [], high) });
  }

  update(rows) {
    const fresh = table(this.caption, this.columns, rows, this.high);
    const [old, next] = [this.node, fresh].map((node) => [...node.querySelectorAll("tbody tr")].map((row) => [...row.cells]));
    if (old.length !== next.length) return this.node.querySelector("tbody").replaceWith(fresh.querySelector("tbody"));
    old.forEach((row, at) => row.forEach((cell, column) => {
      if (!cell.isEqualNode(next[at][column])) cell.replaceWith(next[at][column]);
    }));
  }
}

// Numbers with names: [name, explanation?].
export class Tiles {
  constructor(names) {
    this.values = names.map(() => el("dd", {}, "–"));
    this.node = el("dl", { class: "tiles" }, names.map(([name, says], i) =>
      el("div", { class: i ? null : "main", title: says }, el("dt", {}, name), this.values[i])));
  }

  update(values) {
    values.forEach((value, i) => { if (this.values[i].textContent !== value) this.values[i].textContent = value; });
  }
}

export function section(title, ...content) {
  const id = title.toLowerCase().replaceAll(" ", "-");
  return el("section", { "aria-labelledby": id }, el("h2", { id }, title), content);
}

export const STATUSES = {
  idle: ["not started", "no step was asked for yet"],
  running: ["running", "its trainers ask for steps"],
  waiting: ["waiting", "the next epoch needs the reports of some ranks"],
  stalled: ["stalled", "nobody asked for anything for long"],
  finished: ["finished", "every rank is through the last step"],
  diverged: ["diverged", "half of the newest losses or more are NaN or infinite"],
};

export function badge(status) {
  const [word, says] = STATUSES[status] ?? ["unknown", "too large to be looked into for a list"];
  return el("span", { class: `badge ${status ?? "unknown"}`, title: says }, word);
}

// A bar is drawn in SVG: the policy of this page allows no style attributes.
export function bar(share) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of Object.entries({ class: "bar-of", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" })) node.setAttribute(key, value);
  for (const [kind, width] of [["rest", 100], ["accent", 100 * share]]) {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [key, value] of Object.entries({ class: kind, width, height: 6 })) rect.setAttribute(key, value);
    node.append(rect);
  }
  return node;
}

export function waits(standing, now) {
  if (!standing.waits_for_count) return "";
  const [first] = standing.waits_for, others = standing.waits_for_count - 1;
  const seen = standing.waits_since == null ? "has not been here since the server's start" : `was last here ${ago(standing.waits_since, now)}`;
  return `rank ${first} ${seen}` + (others ? `, and ${many(others, "other rank")}` : "");
}
