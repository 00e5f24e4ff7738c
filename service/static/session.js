// One session: how it stands, its losses, epochs, ranks, and the rows of a step.
import { Chart, drawEpochs, drawHistogram, drawLosses, drawStrip, lossColumns } from "./charts.js";
import { Grid, STATUSES, Tiles, ago, badge, bar, count, day, el, many, part, percent, real, section, table, waits } from "./elements.js";
import { ask } from "./network.js";
import { stepRows } from "./rows.js";

export function session(id, step, say) {
  const path = `dashboard/sessions/${part(id)}`;
  const kicker = el("p", { class: "kicker" }, "Session");
  const standing = el("p", { class: "standing", role: "status" }), alarm = el("p", { class: "alarm", role: "alert", hidden: true });
  const done = el("div", { class: "done" });
  const tiles = new Tiles([
    ["done", "steps reported, of those of all epochs"], ["epoch", "counted from 0"], ["step", "the furthest that a rank asked for or reported"],
    ["trained on in this epoch", "share of all candidates"], ["reweighted", "rows whose weight is not 1: what is left of those pruned"], ["mean loss of the step"]]);

  const range = el("select", { id: "which-steps", onchange: () => again() }, el("option", { value: "" }, "all steps"), el("option", { value: "newest" }, "newest epoch"), el("option", { value: "200" }, "last 200 steps"));
  const log = el("button", { type: "button", "aria-pressed": "false", onclick: () => { log.setAttribute("aria-pressed", String(log.ariaPressed !== "true")); draw(last, true); } }, "Log scale");
  const curve = new Chart("Loss by step", 260, drawLosses, lossColumns);
  curve.picture.addEventListener("click", (event) => {
    const points = last?.losses.points ?? [], box = curve.picture.getBoundingClientRect();
    if (!points.length || !curve.plane.x) return;
    const at = ((event.clientX - box.left) / box.width) * curve.picture.viewBox.baseVal.width;
    const nearest = points.reduce((best, p) => (Math.abs(curve.plane.x(p.step) - at) < Math.abs(curve.plane.x(best.step) - at) ? p : best));
    rows.show(nearest.step);
    rows.node.scrollIntoView({ block: "nearest" });
  });
  const silent = el("p", { class: "note" }, "No losses were reported yet.");
  const rows = stepRows(id, (shown) => {
    chosen = shown;
    history.replaceState(null, "", `#/sessions/${part(id)}/steps/${shown}`);
    if (last) draw(last, true);
  });

  const kept = new Chart("Candidates by epoch", 220, drawEpochs, [
    ["epoch", (e) => count(e.number)], ["handed out", (e) => count(e.rows), true], ["trained on", (e) => count(e.trained), true],
    ["left out", (e) => count(e.size - e.trained), true], ["reweighted", (e) => count(e.reweighted), true]],
  [["accent", "trained on, reweighted"], ["soft", "trained on at weight 1"], ["rest", "left out"]]);
  const spread = new Chart("Losses of an epoch", 220, drawHistogram, [
    ["from", (b) => real(b.from)], ["to", (b) => real(b.to), true], ["losses", (b) => count(b.count), true], ["the epoch before", (b) => count(b.before), true]],
  [["accent", "this epoch"], ["outline", "the epoch before"]]);
  const choose = el("select", { id: "which-epoch", onchange: () => again() }, el("option", { value: "" }, "newest"));
  const epochs = new Grid("Epochs, newest first", [
    ["epoch", (e) => count(e.number)], ["first step", (e) => count(e.first_step), true], ["steps", (e) => count(e.steps), true],
    ["handed out", (e) => count(e.rows), true, "rows that the epoch's steps give to the ranks"],
    ["trained on", (e) => percent(e.trained / e.size), true, "share of all candidates"],
    ["reweighted", (e) => count(e.reweighted), true, "rows whose weight is not 1"],
    ["mean loss", (e) => real(e.mean), true, "of the steps that were read"],
    ["not finite", (e) => (e.unknown ? percent(e.unknown / e.losses) : "–"), true, "share of the losses read that are NaN or infinite"],
    ["began without", (e) => (e.missing ? many(e.missing, "report") : "–"), true, "reports of the epoch before that were missing when it began"]], true);
  const weights = new Grid("Weights in the newest epoch", [
    ["weight", (w) => real(w.weight)], ["share of its rows", (w) => percent(w.share), true]]);

  const strip = new Chart("Steps behind, by rank", 20, drawStrip, [["ranks", (c) => c.name], ["steps behind", (c) => (c.behind < 0 ? "never came" : count(c.behind)), true]],
    [["soft", "with the furthest"], ["late", "behind"], ["last", "the furthest behind"], ["never", "never came"]]);
  const ranks = new Grid("Ranks", [
    ["rank", (r) => count(r.rank)], ["behind", (r) => (r.behind ? many(r.behind, "step") : "–"), true],
    ["last step asked", (r) => count(r.last_asked), true, "of this server since it was started"], ["last step reported", (r) => count(r.last_reported), true],
    ["reports", (r) => count(r.reports), true], ["here last", (r) => ago(r.seen, now()), false, "when it last asked or reported, since this server was started"]], true);
  const which = el("input", { type: "number", min: 0, id: "which-rank", placeholder: "furthest behind", onchange: () => again() });
  const lines = el("p", { class: "note" });
  const plan = el("div"), facts = el("div");
  let last = null, chosen = step, clock = 0, first = true, latest = 0;

  const now = () => Date.now() / 1000 + clock;

  function again() {
    load().catch((error) => { lines.textContent = error.message; });
  }

  function address() {
    const asked = new URLSearchParams();
    if (range.value === "newest") asked.set("newest", "true");
    else if (range.value && last?.standing.step != null) asked.set("first", Math.max(0, last.standing.step - Number(range.value) + 1));
    if (choose.value !== "") asked.set("of", choose.value);
    if (which.value !== "") asked.set("rank", which.value);
    return asked.size ? `${path}?${asked}` : path;
  }

  async function load() {
    const mine = ++latest, view = await ask(address());
    if (mine !== latest) return;
    if (view !== last) clock = view.now - Date.now() / 1000;
    draw(view, false);
  }

  function tell(view) {
    const { standing: how } = view, [, says] = STATUSES[how.status];
    const parts = [];
    if (how.status === "idle") parts.push("No step was asked for yet");
    else if (how.status === "waiting") parts.push(`Epoch ${how.epoch == null ? "" : view.epochs.at(-1).number + 1} waits for ${many(how.waits_for_count, "rank")}: ${waits(how, now())}`);
    else parts.push(says.charAt(0).toUpperCase() + says.slice(1));
    if (how.status === "stalled" && how.waits_for_count) parts.push(`The next epoch waits for ${waits(how, now())}`);
    if (how.status !== "idle" || how.active != null) parts.push(`Last activity: ${ago(how.active, now())}`);
    const text = `${parts.join(". ")}.`;
    if (standing.dataset.text === text + how.status) return;
    standing.dataset.text = text + how.status;
    standing.replaceChildren(badge(how.status), " ", text);
  }

  function draw(view, always) {
    tell(view);
    if (view === last && !always) return ranks.update(view.ranks.lines);
    const { losses } = view, newest = view.epochs.at(-1), point = losses.points.at(-1), how = view.standing;
    if (last && how.epoch !== last.standing.epoch && newest) say(`Epoch ${how.epoch} is open: ${percent(newest.trained / newest.size)} of the candidates are trained on.`);
    if (last && how.status !== last.standing.status) say(`The session is ${STATUSES[how.status][0]}.`);
    last = view;
    kicker.textContent = ["Session", view.method, many(view.size, "candidate"), many(view.epochs_in_all, "epoch"), many(view.ranks.total, "rank") + (view.resized == null ? "" : ` from step ${count(view.resized)} on`),
      view.owner == null ? null : `owner ${view.owner}`].filter(Boolean).join(" · ");
    done.replaceChildren(bar(how.done));
    tiles.update([percent(how.done), count(how.epoch), count(how.step), newest && how.step != null ? percent(newest.trained / newest.size) : "–",
      newest && how.step != null ? count(newest.reweighted) : "–", point && point.mean == null ? "not finite" : real(point?.mean)]);
    alarmed(view);
    drawCurve(view, point);
    for (const node of [kept.node, epochs.node, ranks.node]) node.closest("section").hidden = how.step == null;
    rows.node.hidden = how.step == null;
    kept.update(view.epochs, [...view.epochs].reverse(), newest && how.step != null ? pruned(view, newest) : "No epoch was handed out yet.");
    options(view);
    histogram(view);
    const means = new Map(losses.epochs.map((each) => [each.number, each]));
    epochs.update([...(how.step == null ? [] : view.epochs)].reverse().map((epoch) => ({ ...means.get(epoch.number), ...epoch })));
    weights.update(view.weights);
    weights.node.hidden = !view.weights.length;
    drawRanks(view);
    rows.update(view);
    if (!first) return;
    first = false;
    const given = { candidates: count(view.size), created: day(view.created), ...view.parameters };
    facts.replaceChildren(el("details", { class: "data" }, el("summary", {}, many(Object.keys(given).length, "parameter")),
      table("Parameters of the session", [["name", ([name]) => name], ["value", ([, value]) => el("code", {}, value)]], Object.entries(given))));
    if (view.has_plan) ask(`${path}/plan`).then((found) => plan.replaceChildren(planned(found)), (error) => plan.replaceChildren(el("p", { class: "note" }, error.message)));
    if (step != null) rows.show(step);
  }

  function alarmed({ losses, standing: how }) {
    const bad = losses.epochs.filter((epoch) => epoch.unknown);
    const share = bad.map((epoch) => `${percent(epoch.unknown / epoch.losses)} in epoch ${epoch.number}`).slice(-3).join(", ");
    const text = losses.diverged
      ? `Diverged: from step ${count(losses.diverged.step)} (epoch ${losses.diverged.epoch}) on, losses are NaN or infinite. Of the losses read: ${share}.`
      : how.status === "diverged" ? "Diverged: the newest losses are NaN or infinite."
      : bad.length ? `Some losses are NaN or infinite: ${share}.` : "";
    alarm.classList.toggle("loud", how.status === "diverged" || losses.diverged != null);
    if (alarm.textContent !== text) alarm.textContent = text;
    alarm.hidden = !text;
  }

  function drawCurve({ losses, standing: how }, point) {
    silent.textContent = how.step == null ? "No step was asked for yet." : "No losses were reported yet.";
    const some = losses.points.length > 0;
    silent.hidden = some;
    curve.node.hidden = range.parentNode.hidden = log.hidden = !some;
    const text = !some ? "" : "The line is the mean, the band the middle 80 % of the losses, a dotted line a new epoch" +
      (losses.points.some((each) => each.unknown) ? ", a cross a step with losses that are not finite" : "") +
      `. At step ${count(point.step)}: ${point.mean == null ? "not finite" : real(point.mean)}.` + (losses.every > 1 ? ` One step of ${losses.every} is drawn.` : "");
    curve.update({ points: losses.points, log: log.ariaPressed === "true", chosen }, [...losses.points].reverse(), text);
  }

  function pruned(view, newest) {
    const { chooses, pruning_ends: ends } = view;
    const what = `In epoch ${newest.number}, ${count(newest.rows)} of ${many(newest.size, "candidate")} are handed out`;
    if (chooses) return `${what}, and ${count(newest.trained)} of them are chosen to train on.`;
    if (ends == null) return `${what}.`;
    const after = newest.number >= ends ? `Pruning ended at epoch ${ends} (delta): from there on everything is trained on.` : `Pruning ends at epoch ${ends} (delta).`;
    return `${what}, ${count(newest.reweighted)} of them reweighted. ${after}`;
  }

  function options(view) {
    const numbers = view.epochs.map((each) => String(each.number)).reverse();
    const known = [...choose.options].slice(1).map((each) => each.value);
    if (numbers.join() === known.join()) return;
    const value = numbers.includes(choose.value) ? choose.value : "";
    choose.replaceChildren(choose.options[0], ...numbers.map((each) => el("option", { value: each }, `epoch ${each}`)));
    choose.value = value;
  }

  function histogram({ spread: found, losses }) {
    spread.node.parentNode.hidden = !losses.points.length && !found;
    if (!found) return spread.update(null, [], "No finite losses were reported of this epoch.");
    const bins = found.counts.map((each, i) => ({ from: found.edges[i], to: found.edges[i + 1], count: each, before: found.before?.[i] }));
    spread.update(found, bins, `Epoch ${found.epoch}: ${count(found.losses)} losses, mean ${real(found.mean)}` +
      `${found.unknown ? `, ${count(found.unknown)} not finite` : ""}. Height is a share of the epoch's losses; the end bars hold those beyond.`);
  }

  function drawRanks(view) {
    const { ranks: all } = view, per = all.per_cell;
    const cells = all.cells.map((behind, at) => ({ behind, name: per === 1 ? String(at) : `${at * per} to ${Math.min((at + 1) * per, all.total) - 1}` }));
    const summary = `${count(all.started)} of ${many(all.total, "rank")} came; ${all.behind ? `${count(all.behind)} ${all.behind === 1 ? "is" : "are"} behind the furthest` : "none is behind"}.` +
      (per > 1 ? ` A cell is the last of ${per} ranks.` : "");
    strip.node.hidden = all.total === 1;
    strip.update({ cells: all.cells }, cells, summary);
    which.max = all.total - 1;
    which.parentNode.hidden = all.total <= all.lines.length && which.value === "";
    lines.textContent = all.total <= all.lines.length ? "" : which.value === "" ? `The ${count(all.lines.length)} furthest behind:` : `From rank ${count(Number(which.value))} on:`;
    ranks.update(all.lines);
  }

  return {
    title: id,
    charts: [curve, kept, spread, strip],
    nodes: [kicker, el("h1", { tabindex: -1 }, id), standing, alarm, done, tiles.node,
      section("Losses", silent, el("div", { class: "bar" }, el("label", { for: "which-steps", class: "inline" }, "Draw", range), log), curve.node),
      rows.node,
      el("div", { class: "pair" }, section("Trained on and left out", kept.node),
        section("Distribution", el("label", { for: "which-epoch", class: "inline" }, "Losses of", choose), spread.node)),
      plan, section("Epochs", epochs.node, weights.node),
      section("Ranks", strip.node, el("label", { for: "which-rank", class: "inline apart" }, "List ranks from", which), lines, ranks.node),
      section("Parameters", facts)],
    load,
  };
}

const GOOD = {
  similarity: "higher is harder", window_neighbours: "hard negatives in a batch: higher is harder",
  false_negatives: "lower is better: these negatives are probably positives", inside_edges: "higher keeps neighbours together",
};

export function planned(plan) {
  const tiles = new Tiles([["batches"], ["rows"], ["communities per batch"], ["hard negatives per row"]]);
  tiles.update([count(plan.batches), count(plan.rows), real(plan.communities_per_batch), count(plan.negatives)]);
  const hard = Object.entries(plan.hardness).map(([name, each]) => ({ name: name.replaceAll("_", " "), good: GOOD[name] ?? "", ...each }));
  return section("Plan", tiles.node,
    hard.length
      ? table("Hardness: the plan beside the same rows in random batches", [["measure", (m) => m.name], ["plan", (m) => real(m.plan), true], ["random", (m) => real(m.random), true],
        ["ratio", (m) => (m.plan != null && m.random ? `${real(m.plan / m.random)} ×` : "–"), true], ["what is good", (m) => m.good]], hard)
      : el("p", { class: "note" }, "Nothing says how hard this plan is: only a dataset's manifest does."),
    table("Batches by size", [["rows", ([size]) => count(Number(size))], ["batches", ([, n]) => count(n), true]], Object.entries(plan.sizes)),
    el("details", { class: "data" }, el("summary", {}, "What made the plan"),
      table("What made the plan", [["name", ([name]) => name], ["value", ([, value]) => el("code", {}, value)]], Object.entries(plan.metadata))));
}
