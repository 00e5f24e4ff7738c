// The views, by the address after #: sessions, one session, datasets, one dataset. The one in sight is asked again
// every two seconds; an answer that takes long is asked for less often.
import { Chart, Grid, count, drawEpochs, drawHistogram, drawLosses, el, percent, real, table } from "./charts.js";

const PERIOD = 2000;
const SLOWEST = 10000;
const PAGE = 25;
const TOKEN = "curation.token";
const at = (id) => document.getElementById(id);
const day = (seconds) => new Date(1000 * seconds).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
const many = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
const part = encodeURIComponent;

class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function ask(path, kind = "json") {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { headers, cache: "no-store", signal: AbortSignal.timeout(30000) });
  if (answer.ok) return answer[kind]();
  const document = await answer.json().catch(() => ({}));
  throw new Problem(answer.status, document.detail ?? `the server answered ${answer.status}`);
}

function section(title, ...content) {
  const id = title.toLowerCase().replaceAll(" ", "-");
  return el("section", { "aria-labelledby": id }, el("h2", { id }, title), content);
}

class Tiles {
  constructor(names) {
    this.values = names.map(() => el("dd", {}, "–"));
    this.node = el("dl", { class: "tiles" }, names.map((name, i) => el("div", i ? {} : { class: "main" }, el("dt", {}, name), this.values[i])));
  }

  update(values) {
    values.forEach((value, i) => { if (this.values[i].textContent !== value) this.values[i].textContent = value; });
  }
}

function sessions() {
  const grid = new Grid("Sessions, newest first", [
    ["session", (s) => el("a", { href: `#/sessions/${part(s.id)}` }, s.id)],
    ["method", (s) => s.method],
    ["step", (s) => count(s.last_step), true],
    ["epoch", (s) => count(s.open_epoch), true],
    ["epochs", (s) => count(s.epochs), true],
    ["candidates", (s) => count(s.size), true],
    ["ranks", (s) => count(s.world_size), true],
    ["created", (s) => day(s.created)],
  ]);
  const note = el("p", { class: "note" });
  const more = el("button", { type: "button", hidden: true, onclick: () => { limit += 50; refresh(); } }, "Show older sessions");
  let limit = 50;
  return {
    title: "Sessions",
    nodes: [el("h1", { tabindex: -1 }, "Sessions"), note, grid.node, more],
    async load() {
      const found = await ask(`dashboard/sessions?limit=${limit}`);
      grid.update(found.sessions);
      note.textContent = found.sessions.length
        ? "Step is the last one reported, epoch the last one opened."
        : "There is no session yet. POST /v1/sessions makes one; it shows up here by itself.";
      grid.node.hidden = !found.sessions.length;
      more.hidden = found.next == null || limit >= 200;
    },
  };
}

function session(id) {
  const path = `dashboard/sessions/${part(id)}`;
  const kicker = el("p", { class: "kicker" }, "Session");
  const tiles = new Tiles(["done", "epoch", "step", "kept in this epoch", "reweighted", "mean loss of the step"]);
  const curve = new Chart("Loss by step", 260, drawLosses, [
    ["step", (p) => count(p.step)], ["epoch", (p) => count(p.epoch), true], ["mean", (p) => real(p.mean), true],
    ["10 % below", (p) => real(p.low), true], ["10 % above", (p) => real(p.high), true]]);
  const kept = new Chart("Candidates by epoch", 220, drawEpochs, [
    ["epoch", (e) => count(e.number)], ["handed out", (e) => count(e.rows), true],
    ["trained on", (e) => count(e.trained), true], ["left out", (e) => count(e.size - e.trained), true], ["reweighted", (e) => count(e.reweighted), true]],
  [["accent", "kept, weight not 1"], ["soft", "kept, weight 1"], ["rest", "left out"]]);
  const spread = new Chart("Losses of an epoch", 220, drawHistogram, [
    ["from", (b) => real(b.from)], ["to", (b) => real(b.to), true], ["losses", (b) => count(b.count), true]]);
  const choose = el("select", { id: "which-epoch", onchange: () => last && histogram(last.losses) }, el("option", { value: "" }, "newest"));
  const epochs = new Grid("Epochs, newest first", [
    ["epoch", (e) => count(e.number)], ["first step", (e) => count(e.first_step), true], ["steps", (e) => count(e.steps), true],
    ["handed out", (e) => count(e.rows), true], ["trained on", (e) => percent(e.trained / e.size), true],
    ["reweighted", (e) => count(e.reweighted), true], ["mean loss", (e) => real(e.mean), true],
    ["reports gone without", (e) => count(e.missing), true]], true);
  const weights = new Grid("Weights in the newest epoch", [
    ["weight", (w) => real(w.weight)], ["share of its rows", (w) => percent(w.share), true]]);
  const ranks = new Grid("How far each rank is", [
    ["rank", (r) => count(r.rank)], ["last step asked", (r) => count(r.last_asked), true],
    ["last step reported", (r) => count(r.last_reported), true], ["reports", (r) => count(r.reports), true]], true);
  const silent = el("p", { class: "note" }, "No losses were reported yet.");
  const plan = el("div");
  const facts = el("div");
  let last = null, asked = false;

  function histogram(losses) {
    const number = choose.value === "" ? losses.epochs.at(-1)?.number : Number(choose.value);
    const epoch = losses.epochs.find((each) => each.number === number);
    if (!epoch) return spread.update(null, [], "No losses were read of this epoch.");
    const rows = epoch.counts.map((each, i) => ({ from: losses.edges[i], to: losses.edges[i + 1], count: each }));
    spread.update({ edges: losses.edges, counts: epoch.counts }, rows,
      `Epoch ${number}: ${count(epoch.values)} losses, mean ${real(epoch.mean)}. The end bars hold those beyond.`);
  }

  function options(losses) {
    const numbers = losses.epochs.map((each) => String(each.number)).reverse();
    const known = [...choose.options].slice(1).map((each) => each.value);
    if (numbers.join() === known.join()) return;
    const value = numbers.includes(choose.value) ? choose.value : "";
    choose.replaceChildren(choose.options[0], ...numbers.map((each) => el("option", { value: each }, `epoch ${each}`)));
    choose.value = value;
  }

  function draw(view) {
    const { state, losses } = view, newest = view.epochs.at(-1), point = losses.points.at(-1);
    if (last && view.epoch !== last.epoch && newest) say(`Epoch ${view.epoch} is open: ${percent(newest.trained / newest.size)} kept.`);
    last = view;
    kicker.textContent = ["Session", state.spec.method, `${count(state.size)} candidates`, many(state.spec.epochs, "epoch"), many(state.spec.world_size, "rank")].join(" · ");
    const done = newest ? (newest.number + (view.step + 1 - newest.first_step) / newest.steps) / state.spec.epochs : 0;
    tiles.update([percent(done), count(view.epoch), count(view.step),
      newest ? percent(newest.trained / newest.size) : "–", newest ? count(newest.reweighted) : "–", real(point?.mean)]);
    const means = new Map(losses.epochs.map((each) => [each.number, each.mean]));
    silent.hidden = losses.points.length > 0;
    curve.node.hidden = spread.node.hidden = choose.parentNode.hidden = !losses.points.length;
    curve.update(losses.points, [...losses.points].reverse(), !point ? "" :
      `The line is the mean, the band the middle 80 % of the losses, a dotted line a new epoch. At step ${count(point.step)}: ${real(point.mean)}.` +
      (losses.every > 1 ? ` One step of ${losses.every} is drawn.` : ""));
    kept.update(view.epochs, [...view.epochs].reverse(), newest
      ? `In epoch ${newest.number}, ${count(newest.rows)} of ${count(newest.size)} are handed out, ` + (view.chooses
        ? `and ${count(newest.trained)} of them are chosen to train on.` : `${count(newest.reweighted)} of them reweighted.`)
      : "No epoch was handed out yet.");
    options(losses);
    histogram(losses);
    epochs.update([...view.epochs].reverse().map((epoch) => ({ ...epoch, mean: means.get(epoch.number) })));
    weights.update(view.weights);
    weights.node.hidden = !view.weights.length;
    ranks.update(state.ranks);
    if (asked) return;
    asked = true;
    const given = { ...state.spec, size: state.size, created: day(state.created), "bytes in memory": count(state.resident_bytes) };
    facts.replaceChildren(table("Parameters of the session", [["name", ([name]) => name], ["value", ([, value]) => el("code", {}, short(value))]], Object.entries(given)));
    if (view.has_plan) ask(`${path}/plan`).then((found) => plan.replaceChildren(planned(found)), (error) => plan.replaceChildren(el("p", { class: "note" }, error.message)));
  }

  return {
    title: id,
    charts: [curve, kept, spread],
    nodes: [kicker, el("h1", { tabindex: -1 }, id), tiles.node, section("Losses", silent, curve.node),
      el("div", { class: "pair" }, section("Kept and pruned", kept.node),
        section("Distribution", el("label", { for: "which-epoch", class: "inline" }, "Losses of", choose), spread.node)),
      plan, section("Epochs", epochs.node, weights.node), section("Ranks", ranks.node), section("Parameters", facts)],
    async load() { draw(await ask(path)); },
  };
}

function short(value) {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return text.length > 300 ? `${text.slice(0, 300)}…` : text;
}

function planned(plan) {
  const tiles = new Tiles(["batches", "rows", "communities per batch", "hard negatives per row"]);
  tiles.update([count(plan.batches), count(plan.rows), real(plan.communities_per_batch), count(plan.negatives)]);
  const hard = Object.entries(plan.hardness).map(([name, each]) => ({ name: name.replaceAll("_", " "), ...each }));
  return section("Plan", tiles.node,
    hard.length
      ? table("Hardness: the plan beside the same rows in random batches", [["measure", (m) => m.name], ["plan", (m) => real(m.plan), true], ["random", (m) => real(m.random), true],
        ["ratio", (m) => (m.plan != null && m.random ? `${real(m.plan / m.random)} ×` : "–"), true]], hard)
      : el("p", { class: "note" }, "Nothing says how hard this plan is: only a dataset's manifest does."),
    table("Batches by size", [["rows", ([size]) => count(Number(size))], ["batches", ([, n]) => count(n), true]], Object.entries(plan.sizes)),
    el("details", { class: "data" }, el("summary", {}, "What made the plan"),
      table("What made the plan", [["name", ([name]) => name], ["value", ([, value]) => el("code", {}, value)]], Object.entries(plan.metadata))));
}

function datasets() {
  const grid = new Grid("Curated datasets under the server's roots", [
    ["dataset", (d) => el("a", { href: `#/datasets/${part(d.name)}` }, d.name)],
    ["kept", (d) => count(d.rows_out), true], ["of candidates", (d) => count(d.rows_in), true],
    ["share", (d) => percent(d.rows_in ? d.rows_out / d.rows_in : null), true], ["created", (d) => day(d.created)]]);
  const note = el("p", { class: "note", hidden: true });
  return {
    title: "Datasets",
    nodes: [el("h1", { tabindex: -1 }, "Datasets"), note, grid.node],
    async load() {
      const found = await ask("dashboard/datasets");
      grid.update(found.datasets);
      grid.node.hidden = !found.datasets.length;
      note.hidden = found.datasets.length > 0 && !found.unreadable.length;
      note.textContent = found.unreadable.length
        ? `The manifests of these cannot be read: ${found.unreadable.join(", ")}.`
        : "There is none. Start the server with --datasets FOLDER, whose subfolders are what `curation run` wrote.";
    },
  };
}

function dataset(name) {
  const path = `dashboard/datasets/${part(name)}`;
  const tiles = new Tiles(["kept", "of candidates", "share", "bad rows", "batches"]);
  const steps = el("div"), plan = el("div"), rows = el("div"), frame = el("div");
  const where = el("p", { class: "note", role: "status" }), told = el("p", { class: "note", role: "status" });
  const input = el("input", { type: "number", min: 0, value: 0, id: "which-rows", onchange: () => go(Number(input.value)) });
  const label = el("label", { for: "which-rows" }, "Rows from", input);
  const back = el("button", { type: "button", onclick: () => go(Number(input.value) - by) }, "Previous");
  const forth = el("button", { type: "button", onclick: () => go(Number(input.value) + by) }, "Next");
  const more = el("button", { type: "button", hidden: true, onclick: () => read(rows.childElementCount) }, "More rows of this batch");
  const show = el("button", { type: "button", onclick: () => report().catch((error) => tell(told, error)) }, "Show the report");
  let by = PAGE, most = 0, batched = false, loaded = false, turn = 0;

  function go(to) {
    input.value = Math.min(Math.max(0, Math.trunc(to) || 0), most);
    return read(0);
  }

  async function read(start) {
    const mine = ++turn, from = Number(input.value);
    const query = batched ? `batch=${from}&start=${start}` : `start=${from}`;
    try {
      const page = await ask(`${path}/rows?${query}&limit=${PAGE}`);
      if (mine !== turn) return;
      const shown = page.rows.map((row) => card(page, row));
      if (start) rows.append(...shown); else rows.replaceChildren(...shown);
      const end = start + page.rows.length;
      where.textContent = batched
        ? `Batch ${count(from)}: ${count(end)} of its ${count(page.total)} rows.`
        : `Rows ${count(from)} to ${count(from + page.rows.length - 1)} of ${count(page.total)}.`;
      more.hidden = !batched || end >= page.total;
      back.disabled = from <= 0;
      forth.disabled = from + by > most;
      if (start) shown[0]?.querySelector("summary").focus();
    } catch (error) { tell(where, error); }
  }

  async function report() {
    show.disabled = true;
    try {
      const page = await ask(`${path}/report`, "text");
      const inner = el("iframe", { src: "dashboard/frame", sandbox: "allow-scripts", title: `Report of ${name}` });
      // The frame has no origin, so its address cannot be named here; it holds nothing but what it is handed.
      inner.addEventListener("load", () => inner.contentWindow.postMessage(page, "*"), { once: true });
      frame.replaceChildren(inner);
      show.hidden = true;
      told.textContent = "";
    } finally { show.disabled = false; }
  }

  return {
    title: name,
    nodes: [el("p", { class: "kicker" }, "Curated dataset"), el("h1", { tabindex: -1 }, name), tiles.node,
      section("Rows", el("div", { class: "bar" }, label, back, forth), where, rows, el("div", { class: "bar" }, more)),
      plan, section("Steps", steps), section("Report", show, told, frame)],
    async load() {
      const found = await ask(path);
      tiles.update([count(found.rows_out), count(found.rows_in), percent(found.rows_in ? found.rows_out / found.rows_in : null), count(found.bad_rows), count(found.plan?.batches)]);
      if (loaded) return;
      loaded = true;
      batched = found.plan != null;
      by = batched ? 1 : PAGE;
      most = Math.max(0, (batched ? found.plan.batches : found.rows_out) - 1);
      input.max = most;
      label.firstChild.textContent = batched ? `Batch, 0 to ${count(most)}` : `Rows from, 0 to ${count(most)}`;
      steps.replaceChildren(table("Steps of the recipe", [["number", (s) => count(s.number)], ["step", (s) => s.step],
        ["rows in", (s) => count(s.rows_in), true], ["rows out", (s) => count(s.rows_out), true], ["seconds", (s) => real(s.seconds), true]], found.steps));
      if (batched) plan.replaceChildren(planned(found.plan));
      await read(0);
    },
  };
}

function card(page, row) {
  const text = row.cells[page.columns.indexOf(page.text)] ?? row.cells.find((cell) => typeof cell === "string") ?? "";
  const cells = page.columns.flatMap((column, i) => [el("dt", {}, column), el("dd", typeof row.cells[i] === "string" ? { class: "code" } : {}, row.cells[i] == null ? "–" : String(row.cells[i]))]);
  return el("details", { class: "row" },
    el("summary", {}, el("span", { class: "position" }, count(row.position)), el("span", { class: "preview code" }, String(text).slice(0, 200))),
    el("dl", { class: "cells" }, cells));
}

let view = null, timer = 0, paused = false, failed = false;

function say(text) { at("status").textContent = text; }

function trouble(error) {
  if (error.status === 401) {
    const given = sessionStorage.getItem(TOKEN) != null;
    at("access").hidden = false;
    at("main").hidden = true;
    if (given) complain(`The server refused the token: ${error.message}`);
    if (!given || document.activeElement === document.body) at("token").focus();
    return;
  }
  complain(error instanceof Problem ? error.message : "The server does not answer. This page tries again by itself.");
}

// What stays until the next try, where a problem of the whole page goes with the next answer.
function tell(node, error) {
  if (error.status === 401) trouble(error);
  else node.textContent = error.message;
}

function complain(text) {
  failed = true;
  if (at("problem").textContent !== text) at("problem").textContent = text;
  at("problem").hidden = false;
}

async function refresh() {
  clearTimeout(timer);
  const mine = view, begun = performance.now();
  try {
    await mine.load();
    if (mine !== view) return;
    at("access").hidden = true;
    at("main").hidden = false;
    at("main").classList.remove("waiting");
    if (failed) say("The server answers again.");
    failed = false;
    at("problem").hidden = true;
    at("problem").textContent = "";
    at("clock").textContent = `${paused ? "As of" : "Live ·"} ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    if (mine !== view) return;
    trouble(error);
    if (error.status === 401) return;
  }
  clearTimeout(timer);
  if (!paused && !document.hidden) timer = setTimeout(refresh, Math.min(SLOWEST, Math.max(PERIOD, 5 * (performance.now() - begun))));
}

function route(event) {
  const [kind, name] = location.hash.slice(2).split("/").map(decodeURIComponent);
  const one = { sessions: session, datasets: dataset }[kind], all = kind === "datasets" ? datasets : sessions;
  view = name && one ? one(name) : all();
  document.title = `${view.title} – curation`;
  at("main").classList.add("waiting");
  at("main").replaceChildren(...view.nodes);
  at("problem").hidden = true;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === (kind === "datasets" ? "#/datasets" : "#/")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (event) {
    scrollTo(0, 0);
    at("main").querySelector("h1").focus();
  }
  refresh();
}

at("skip").addEventListener("click", (event) => { event.preventDefault(); at("main").focus(); });
at("pause").addEventListener("click", () => {
  paused = !paused;
  at("pause").setAttribute("aria-pressed", String(paused));
  refresh();
});
at("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, at("token").value.trim());
  at("token").value = "";
  at("forget").hidden = false;
  refresh();
});
at("forget").addEventListener("click", () => {
  sessionStorage.removeItem(TOKEN);
  location.reload();
});
at("forget").hidden = sessionStorage.getItem(TOKEN) == null;
addEventListener("hashchange", route);
addEventListener("resize", () => view.charts?.forEach((chart) => chart.resize()));
document.addEventListener("visibilitychange", () => { if (!document.hidden && !paused) refresh(); });
route();
