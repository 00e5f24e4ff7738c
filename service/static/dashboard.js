// The views, by the address after #: sessions, one session, datasets, one dataset. The one in sight is asked again
// every two seconds; an answer that takes long is asked for less often, and a hidden tab asks for nothing.
import { Grid, Tiles, ago, badge, bar, count, day, el, many, part, percent, real, section, table, waits } from "./elements.js";
import { TOKEN, Problem, ask } from "./network.js";
import { card } from "./rows.js";
import { planned, session } from "./session.js";

const PERIOD = 2000;
const SLOWEST = 10000;
const PAGE = 25;
const LINES = 50;
const at = (id) => document.getElementById(id);

function sessions() {
  let pages = [null], page = 0, found = null, clock = 0, typing = 0, latest = 0;
  const now = () => Date.now() / 1000 + clock;
  const grid = new Grid("Sessions", [
    ["session", (s) => el("a", { href: `#/sessions/${part(s.id)}` }, s.id)],
    ["status", (s) => el("span", {}, badge(s.standing?.status), s.standing?.waits_for_count ? el("span", { class: "why" }, waits(s.standing, now())) : null)],
    ["done", (s) => (s.standing ? el("span", { class: "share" }, bar(s.standing.done), percent(s.standing.done)) : "–"), false, "steps reported, of those of all epochs"],
    ["last activity", (s) => (s.standing?.status === "idle" && s.standing.active == null ? "never" : s.standing ? ago(s.standing.active, now()) : "–"), false, "when a trainer last asked or reported"],
    ["step", (s) => count(s.standing?.step), true, "the furthest that a rank asked for or reported"],
    ["method", (s) => s.method],
    ["candidates", (s) => count(s.size), true],
    ["ranks", (s) => count(s.world_size), true],
    ["owner", (s) => s.owner ?? "–"],
    ["created", (s) => day(s.created)],
  ]);
  grid.node.classList.add("cards");
  const note = el("p", { class: "note", role: "status" });
  const search = el("input", { type: "search", id: "search", maxlength: 64, autocomplete: "off", spellcheck: "false", oninput: () => { clearTimeout(typing); typing = setTimeout(anew, 250); } });
  const sort = el("select", { id: "sort", onchange: () => anew() }, [["newest", "newest first"], ["oldest", "oldest first"], ["name", "by name"], ["largest", "largest first"]].map(([value, text]) => el("option", { value }, text)));
  const back = el("button", { type: "button", onclick: () => turn(-1) }, "Previous page");
  const forth = el("button", { type: "button", onclick: () => turn(1) }, "Next page");
  const controls = el("div", { class: "bar", role: "search" }, el("label", { for: "search" }, "Search name, owner or method", search), el("label", { for: "sort" }, "Order", sort));
  const paging = el("div", { class: "bar" }, back, forth);

  function anew() { [pages, page] = [[null], 0]; refresh(); }

  function turn(by) {
    page = Math.max(0, page + by);
    pages = [...pages.slice(0, page + 1)];
    if (page === pages.length) pages.push(found.next);
    refresh();
    at("main").querySelector("h1").focus();
  }

  return {
    title: "Sessions",
    nodes: [el("h1", { tabindex: -1 }, "Sessions"), controls, note, grid.node, paging],
    async load() {
      const mine = ++latest, asked = new URLSearchParams({ search: search.value, sort: sort.value, limit: LINES, ...(pages[page] == null ? {} : { after: pages[page] }) });
      const next = await ask(`dashboard/sessions?${asked}`);
      if (mine !== latest) return;
      if (next !== found) clock = next.now - Date.now() / 1000;
      found = next;
      grid.update(found.sessions);
      grid.node.classList.toggle("unowned", found.sessions.every((s) => s.owner == null));
      const first = page * LINES + 1;
      note.textContent = found.sessions.length
        ? `${count(first)} to ${count(first + found.sessions.length - 1)} of ${many(found.total, "session")}.`
        : search.value ? `No session of yours has “${search.value}” in its name, owner or method.`
        : sessionStorage.getItem(TOKEN) == null ? "There is no session yet. POST /v1/sessions makes one; it shows up here by itself."
        : "Your token sees no session: it sees those of its owner alone, unless its scope is read-all or admin. New ones show up here by themselves.";
      grid.node.hidden = !found.sessions.length;
      controls.hidden = !found.total && !search.value;
      back.disabled = page === 0;
      forth.disabled = found.next == null;
      paging.hidden = page === 0 && found.next == null;
    },
  };
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
  const tiles = new Tiles([["kept", "rows that the recipe let through"], ["of candidates"], ["share"], ["bad rows", "rows that could not be read"], ["batches"]]);
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
      const shown = page.rows.map((row) => card(page, row, [count(row.position)], name));
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

function missing(what, kind) {
  return {
    title: "Not found",
    nodes: [el("h1", { tabindex: -1 }, "Not found"), el("p", {}, what), el("p", {}, el("a", { href: kind === "datasets" ? "#/datasets" : "#/" }, kind === "datasets" ? "All datasets" : "All sessions"))],
    load: null,
  };
}

let view = null, timer = 0, paused = false, failed = false, answered = "";

function say(text) { at("status").textContent = text; }

function trouble(error) {
  if (error.status === 401) {
    const given = sessionStorage.getItem(TOKEN) != null;
    at("access").hidden = false;
    at("main").hidden = true;
    at("clock").textContent = answered = "";
    if (given) complain(`The server refused the token: ${error.message}`);
    if (!given || document.activeElement === document.body) at("token").focus();
    return;
  }
  if (answered) at("clock").textContent = `As of ${answered}`;
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
  if (!view.load) return settle();
  const mine = view, begun = performance.now();
  try {
    await mine.load();
    if (mine !== view) return;
    settle();
    if (failed) say("The server answers again.");
    failed = false;
    at("problem").hidden = true;
    at("problem").textContent = "";
    answered = new Date().toLocaleTimeString();
    at("clock").textContent = `${paused ? "As of" : "Live ·"} ${answered}`;
  } catch (error) {
    if (mine !== view) return;
    if (error.status === 404 || error.status === 403 || error.status === 422) {
      const { kind } = address();
      display(missing(gone(error, mine.title, kind), kind));
      return;
    }
    trouble(error);
    if (error.status === 401) return;
  }
  clearTimeout(timer);
  if (!paused && !document.hidden) timer = setTimeout(refresh, Math.min(SLOWEST, Math.max(PERIOD, 5 * (performance.now() - begun))));
}

function settle() {
  at("access").hidden = true;
  at("main").hidden = false;
  at("main").classList.remove("waiting");
}

function gone(error, name, kind) {
  if (error.status === 403) return `${name} is not open to your token: ${error.message}.`;
  if (kind === "datasets") return `There is no dataset “${name}” that can be shown: ${error.message}.`;
  return `There is no session “${name}”. It was deleted, or never made under this name on this server.`;
}

// What the address names. What cannot be decoded names nothing.
function address() {
  try {
    const [kind, name, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
    const step = rest[0] === "steps" && /^\d{1,15}$/.test(rest[1] ?? "") ? Number(rest[1]) : null;
    return { kind: kind || "sessions", name: name || null, step };
  } catch {
    return { kind: null, name: null, step: null };
  }
}

function display(next, event) {
  view = next;
  document.title = `${view.title} – curation`;
  at("main").classList.add("waiting");
  at("main").replaceChildren(...view.nodes);
  at("problem").hidden = true;
  const datasetsShown = address().kind === "datasets";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === (datasetsShown ? "#/datasets" : "#/")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (event) {
    scrollTo(0, 0);
    at("main").querySelector("h1").focus();
  }
  refresh();
}

function route(event) {
  const { kind, name, step } = address();
  if (kind === "sessions") display(name == null ? sessions() : session(name, step, say), event);
  else if (kind === "datasets") display(name == null ? datasets() : dataset(name), event);
  else display(missing("This address names no session and no dataset.", kind), event);
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
document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden && !paused) refresh();
});
route();
