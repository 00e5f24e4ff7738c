// Elements and three charts. Text goes in as text nodes only; nothing here parses HTML.

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

function svg(name, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text != null) node.textContent = text;
  return node;
}

const whole = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
export const count = (value) => (value == null ? "–" : whole.format(value));
export const real = (value) => (value == null ? "–" : String(Number(value.toPrecision(4))));
export const percent = (share) => (share == null ? "–" : `${(100 * share).toFixed(share > 0 && share < 0.01 ? 2 : 1)} %`);

// Columns: [title, cell(row), numeric?]. The first cell is the row's heading, never to the right.
export function table(caption, columns, rows, high = false) {
  const head = columns.map(([title, , numeric]) => el("th", { scope: "col", class: numeric ? "number" : null }, title));
  const body = rows.map((row) => el("tr", {}, columns.map(([, cell, numeric], at) =>
    (at ? el("td", { class: numeric ? "number" : null }, cell(row)) : el("th", { scope: "row" }, cell(row))))));
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

// A figure whose picture is redrawn, and whose numbers stand in a table that is filled while it is open.
export class Chart {
  constructor(title, height, draw, columns, legend = []) {
    Object.assign(this, { title, height, draw, rows: [], grid: new Grid(title, columns, true) });
    this.picture = svg("svg", { role: "img", height });
    this.caption = el("figcaption");
    this.details = el("details", { class: "data", ontoggle: () => this.fill() }, el("summary", {}, `${title}: numbers`), this.grid.node);
    this.node = el("figure", {}, this.picture,
      legend.length ? el("ul", { class: "legend" }, legend.map(([kind, text]) => el("li", { class: kind }, text))) : null,
      this.caption, this.details);
  }

  update(data, rows, summary) {
    Object.assign(this, { data, rows });
    if (this.caption.textContent !== summary) this.caption.textContent = summary;
    this.picture.setAttribute("aria-label", `${this.title}. ${summary}`);
    this.resize();
    this.fill();
  }

  resize() {
    const width = Math.max(240, this.node.clientWidth || 600);
    this.picture.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.picture.replaceChildren();
    if (this.data) this.draw(new Plane(this.picture, width, this.height), this.data);
  }

  fill() {
    if (this.details.open) this.grid.update(this.rows);
  }
}

class Plane {
  constructor(node, width, height) {
    Object.assign(this, { node, left: 48, right: width - 8, top: 8, bottom: height - 26 });
  }

  add(name, attributes, text) { this.node.append(svg(name, attributes, text)); }

  scale(low, high, vertical) {
    const [from, to] = vertical ? [this.bottom, this.top] : [this.left, this.right];
    return (value) => from + ((value - low) / (high - low || 1)) * (to - from);
  }

  rows(low, high, y, form) {
    for (const value of ticks(low, high, 4)) {
      this.add("line", { class: "grid", x1: this.left, x2: this.right, y1: y(value), y2: y(value) });
      this.add("text", { x: this.left - 8, y: y(value) + 4, "text-anchor": "end" }, form(value));
    }
  }

  columns(values, x, form) {
    for (const value of values) {
      const at = x(value);
      const anchor = at > this.right - 24 ? "end" : at < this.left + 12 ? "start" : "middle";
      this.add("text", { x: at, y: this.bottom + 18, "text-anchor": anchor }, form(value));
    }
  }
}

function ticks(low, high, about) {
  const raw = (high - low || 1) / about;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= raw);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) found.push(Number((at * step).toPrecision(12)));
  return found;
}

export function drawLosses(plane, points) {
  if (!points.length) return;
  let low = Math.min(...points.map((p) => p.low)), high = Math.max(...points.map((p) => p.high));
  if (low >= 0 && low < high / 2) low = 0;
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const y = plane.scale(low, high, true);
  const first = points[0].step, last = Math.max(points.at(-1).step, first + 1), x = plane.scale(first, last);
  plane.rows(low, high, y, real);
  plane.columns(ticks(first, last, plane.right > 500 ? 6 : 3).filter(Number.isInteger), x, (step) => compact.format(step));
  points.forEach((p, at) => {
    if (at && p.epoch !== points[at - 1].epoch) plane.add("line", { class: "mark", x1: x(p.step), x2: x(p.step), y1: plane.top, y2: plane.bottom });
  });
  const line = (each, key) => each.map((p) => `${x(p.step).toFixed(1)},${y(p[key]).toFixed(1)}`).join(" ");
  plane.add("polygon", { class: "band", points: `${line(points, "high")} ${line([...points].reverse(), "low")}` });
  plane.add("polyline", { class: "curve", points: line(points, "mean") });
  plane.add("circle", { class: "dot", r: 4, cx: x(points.at(-1).step), cy: y(points.at(-1).mean) });
}

export function drawEpochs(plane, epochs) {
  const y = plane.scale(0, 1, true), slot = (plane.right - plane.left) / Math.max(epochs.length, 6);
  const x = (at) => plane.left + at * slot, width = Math.max(1, Math.min(slot * 0.7, 40));
  plane.rows(0, 1, y, (share) => `${Math.round(100 * share)} %`);
  epochs.forEach((epoch, at) => {
    const parts = [["accent", epoch.reweighted], ["soft", epoch.trained - epoch.reweighted], ["rest", epoch.size - epoch.trained]];
    let under = 0;
    for (const [kind, rows] of parts) {
      const over = under + rows / epoch.size;
      if (rows > 0) plane.add("rect", { class: kind, x: x(at) + (slot - width) / 2, width, y: y(over), height: Math.max(0, y(under) - y(over)) });
      under = over;
    }
  });
  const every = Math.ceil(epochs.length / (plane.right > 400 ? 10 : 6));
  plane.columns(epochs.map((_, at) => at).filter((at) => at % every === 0), (at) => x(at) + slot / 2, (at) => epochs[at].number);
}

export function drawHistogram(plane, { edges, counts }) {
  const most = Math.max(...counts, 1), y = plane.scale(0, most, true), x = plane.scale(edges[0], edges.at(-1));
  plane.rows(0, most, y, (value) => (Number.isInteger(value) ? compact.format(value) : ""));
  counts.forEach((value, at) => {
    const from = x(edges[at]), to = x(edges[at + 1]);
    if (value) plane.add("rect", { class: "accent", x: from + 0.5, width: Math.max(0.5, to - from - 1), y: y(value), height: plane.bottom - y(value) });
  });
  plane.columns(ticks(edges[0], edges.at(-1), 5), x, real);
}
