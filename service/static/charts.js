// Three charts and a strip, in SVG, each with its numbers in a table.
import { Grid, compact, count, el, percent, real } from "./elements.js";

function svg(name, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text != null) node.textContent = text;
  return node;
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
    this.plane = new Plane(this.picture, width, this.height);
    if (this.data) this.draw(this.plane, this.data);
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

  rows(values, y, form) {
    for (const value of values) {
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
  const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= raw) ?? 10 * power;
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) found.push(Number((at * step).toPrecision(12)));
  return found;
}

function powers(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const digit of [1, 2, 5]) if (digit * 10 ** power >= low && digit * 10 ** power <= high) found.push(Number((digit * 10 ** power).toPrecision(12)));
  }
  if (found.length < 3) return ticks(low, high, 4).filter((value) => value > 0);
  return found.length > 7 ? found.filter((value) => Number.isInteger(Math.round(1e9 * Math.log10(value)) / 1e9)) : found;
}

// {points, log, chosen}: points whose losses are not finite stand as crosses at the top.
export function drawLosses(plane, { points, log, chosen }) {
  if (!points.length) return;
  const sound = points.filter((p) => p.mean != null);
  const first = points[0].step, last = Math.max(points.at(-1).step, first + 1), x = plane.scale(first, last);
  plane.x = x;
  const positive = sound.flatMap((p) => [p.low, p.mean, p.high]).filter((value) => value > 0);
  const logarithmic = log && positive.length > 0;
  let low = Math.min(...(logarithmic ? positive : sound.map((p) => p.low))), high = Math.max(...sound.map((p) => p.high));
  if (!sound.length) [low, high] = [0, 1];
  if (!logarithmic && low >= 0 && low < high / 2) low = 0;
  if (low === high) [low, high] = logarithmic ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
  const straight = logarithmic ? plane.scale(Math.log10(low), Math.log10(high), true) : plane.scale(low, high, true);
  const y = logarithmic ? (value) => straight(Math.log10(Math.max(value, low))) : straight;
  if (sound.length) plane.rows(logarithmic ? powers(low, high) : ticks(low, high, 4), y, real);
  plane.columns(ticks(first, last, plane.right > 500 ? 6 : 3).filter(Number.isInteger), x, (step) => compact.format(step));
  points.forEach((p, at) => {
    if (at && p.epoch !== points[at - 1].epoch) plane.add("line", { class: "mark", x1: x(p.step), x2: x(p.step), y1: plane.top, y2: plane.bottom });
  });
  const line = (each, key) => each.map((p) => `${x(p.step).toFixed(1)},${y(p[key]).toFixed(1)}`).join(" ");
  for (const run of runs(points)) {
    plane.add("polygon", { class: "band", points: `${line(run, "high")} ${line([...run].reverse(), "low")}` });
    plane.add("polyline", { class: "curve", points: line(run, "mean") });
  }
  for (const p of points.filter((each) => each.unknown)) {
    plane.add("path", { class: "bad", d: `M${x(p.step) - 3} ${plane.top - 3}l6 6m0 -6l-6 6` });
  }
  const shown = points.find((p) => p.step === chosen);
  if (shown) plane.add("line", { class: "chosen", x1: x(chosen), x2: x(chosen), y1: plane.top, y2: plane.bottom });
  const end = sound.at(-1);
  if (end) plane.add("circle", { class: "dot", r: 4, cx: x(end.step), cy: y(end.mean) });
}

function runs(points) {
  const found = [[]];
  for (const p of points) p.mean == null ? found.push([]) : found.at(-1).push(p);
  return found.filter((run) => run.length);
}

export function drawEpochs(plane, epochs) {
  const y = plane.scale(0, 1, true), slot = (plane.right - plane.left) / Math.max(epochs.length, 6);
  const x = (at) => plane.left + at * slot, width = Math.max(1, Math.min(slot * 0.7, 40));
  plane.rows(ticks(0, 1, 4), y, (share) => `${Math.round(100 * share)} %`);
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

// Shares of the losses in each bin; `before` is drawn as an outline.
export function drawHistogram(plane, { edges, counts, before }) {
  const shares = (values) => { const all = values.reduce((a, b) => a + b, 0) || 1; return values.map((value) => value / all); };
  const now = shares(counts), earlier = before ? shares(before) : [];
  const most = Math.max(...now, ...earlier, 1e-9), y = plane.scale(0, most, true), x = plane.scale(edges[0], edges.at(-1));
  plane.rows(ticks(0, most, 4), y, (share) => `${Number((100 * share).toPrecision(2))} %`);
  now.forEach((value, at) => {
    const from = x(edges[at]), to = x(edges[at + 1]);
    if (value) plane.add("rect", { class: "accent", x: from + 0.5, width: Math.max(0.5, to - from - 1), y: y(value), height: plane.bottom - y(value) });
  });
  if (earlier.length) {
    const steps = earlier.flatMap((value, at) => [`${x(edges[at]).toFixed(1)},${y(value).toFixed(1)}`, `${x(edges[at + 1]).toFixed(1)},${y(value).toFixed(1)}`]);
    plane.add("polyline", { class: "outline", points: steps.join(" ") });
  }
  plane.columns(ticks(edges[0], edges.at(-1), 5), x, real);
}

// One cell for each rank, or for several: the further behind, the darker. A rank that never came is crossed out.
export function drawStrip(plane, { cells }) {
  Object.assign(plane, { left: 0, top: 0 });
  const width = plane.right + 8, size = cells.length > 256 ? 12 : 20, line = Math.max(1, Math.floor(width / size));
  const most = Math.max(...cells, 1);
  cells.forEach((behind, at) => {
    const [x, y] = [(at % line) * size, Math.floor(at / line) * size];
    const kind = behind < 0 ? "never" : behind === 0 ? "soft" : behind <= Math.max(1, most / 2) ? "late" : "last";
    plane.add("rect", { class: kind, x, y, width: size - 2, height: size - 2, rx: 2 });
  });
  const height = Math.ceil(cells.length / line) * size;
  plane.node.setAttribute("viewBox", `0 0 ${width} ${height}`);
  plane.node.setAttribute("height", height);
}

export const lossColumns = [
  ["step", (p) => count(p.step)], ["epoch", (p) => count(p.epoch), true], ["mean", (p) => real(p.mean), true],
  ["10 % below", (p) => real(p.low), true], ["10 % above", (p) => real(p.high), true],
  ["not finite", (p) => (p.unknown ? percent(p.unknown / p.losses) : "–"), true]];
