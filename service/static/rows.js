// Rows as cards: of a dataset's batches, and of a session's step with their losses, text and pictures.
import { count, el, many, part, real, section, table } from "./elements.js";
import { ask } from "./network.js";

const PAGE = 25;

// A cell's value; a picture is fetched with the token once it comes into sight, and shown from memory.
function cell(page, row, column, at, dataset) {
  const value = row.cells[at];
  if (dataset == null || !page.images?.includes(column) || value == null) {
    return el("dd", typeof value === "string" ? { class: "code" } : {}, value == null ? "–" : String(value));
  }
  return el("dd", {}, picture(dataset, row.position, column, `${column} of row ${row.position}`));
}

const seen = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
  seen.unobserve(target);
  target.dispatchEvent(new Event("near"));
}), { rootMargin: "200px" });

function picture(dataset, position, column, alt) {
  const image = el("img", { alt, width: 160, height: 120, onload: () => URL.revokeObjectURL(image.src) });
  image.addEventListener("near", () => {
    ask(`dashboard/datasets/${part(dataset)}/rows/${position}/image?column=${part(column)}`, "blob")
      .then((blob) => { image.src = URL.createObjectURL(blob); }, (error) => image.replaceWith(el("span", { class: "note" }, error.message)));
  });
  seen.observe(image);
  return image;
}

// `row` has cells by the page's columns and a position in the dataset; `lead` stands before the preview.
export function card(page, row, lead, dataset, ...more) {
  const text = row.cells[page.columns.indexOf(page.text)] ?? row.cells.find((each) => typeof each === "string") ?? "";
  const [column] = page.images ?? [];
  const shown = column != null && dataset != null ? picture(dataset, row.position, column, `${column} of row ${row.position}`) : null;
  const cells = page.columns.flatMap((name, at) => [el("dt", {}, name), cell(page, row, name, at, dataset)]);
  return el("details", { class: cells.length ? "row" : "row plain" },
    el("summary", {}, el("span", { class: "position" }, ...lead), el("span", { class: "preview code" }, shown, String(text).slice(0, 200))),
    cells.length ? el("dl", { class: "cells" }, cells) : null, more);
}

function loss(row) {
  return row.loss == null ? (row.reported ? "not finite" : "not reported") : real(row.loss);
}

function visits(path, row) {
  const shown = el("div"), button = el("button", { type: "button", onclick: () => {
    button.disabled = true;
    ask(`${path}/rows/${row}`).then((found) => shown.replaceChildren(table(`Visits of row ${row}`, [
      ["epoch", (v) => count(v.epoch)], ["step", (v) => count(v.step), true], ["rank", (v) => count(v.rank), true],
      ["weight", (v) => real(v.weight), true], ["loss", (v) => loss(v), true], ["chosen", (v) => (v.chosen == null ? "–" : v.chosen ? "yes" : "no")]], found.visits),
    found.next == null ? "" : el("p", { class: "note" }, `Epochs from ${found.next} on are not shown: curation trace has them.`)),
    (error) => { shown.replaceChildren(el("p", { class: "note" }, error.message)); button.disabled = false; });
  } }, `Every visit of row ${row}`);
  return el("div", { class: "visits" }, button, shown);
}

// The rows of a step of a session, by falling loss, and the steps that stand out.
export function stepRows(id, onshow) {
  const path = `v1/sessions/${part(id)}`;
  const input = el("input", { type: "number", min: 0, id: "which-step", required: true });
  const told = el("p", { class: "note", role: "status" }), rows = el("div"), spikes = el("div");
  const more = el("button", { type: "button", hidden: true, onclick: () => read(rows.childElementCount) }, "More rows of this step");
  const find = el("button", { type: "button", onclick: () => outliers() }, "Find spikes");
  const form = el("form", { class: "bar", onsubmit: (event) => { event.preventDefault(); show(Number(input.value)); } },
    el("label", { for: "which-step" }, "Rows of step", input), el("button", {}, "Show"),
    el("button", { type: "button", onclick: () => show(Number(input.value) - 1) }, "Previous"),
    el("button", { type: "button", onclick: () => show(Number(input.value) + 1) }, "Next"), find);
  let dataset = null, turn = 0;

  async function read(start) {
    const mine = ++turn, step = Number(input.value);
    told.textContent = start ? told.textContent : `Looking for the rows of step ${count(step)}…`;
    try {
      const page = await ask(`${path}/steps/${step}/rows?sort=loss&start=${start}&limit=${PAGE}${dataset == null ? "" : "&values=true"}`);
      if (mine !== turn) return;
      const shown = page.rows.map((row) => {
        const facts = [`loss ${loss(row)}`, `row ${row.row}`, `rank ${row.rank}`, `weight ${real(row.weight)}`];
        if (row.score != null) facts.push(`logit ${real(row.score)}`);
        const lead = facts.map((fact) => el("span", { class: "fact" }, fact));
        const known = row.cells == null ? { columns: [], cells: [] } : row;
        return card({ columns: page.columns ?? [], text: page.text, images: page.images }, { ...known, position: row.row }, lead, dataset, visits(path, row.row));
      });
      if (start) rows.append(...shown); else rows.replaceChildren(...shown);
      const end = start + shown.length;
      told.textContent = `Step ${count(page.step)}, epoch ${count(page.epoch)}: ${many(page.total, "row")}, ${count(page.reported)} with a loss. ` +
        (page.chosen === false ? "Nothing is chosen of this super-batch yet." : `The ${count(end)} highest losses, the highest first.`);
      more.hidden = end >= page.total;
      if (start) shown[0]?.querySelector("summary").focus();
    } catch (error) {
      if (mine !== turn) return;
      rows.replaceChildren();
      more.hidden = true;
      told.textContent = error.message;
    }
  }

  async function outliers() {
    find.disabled = true;
    try {
      const found = await ask(`${path}/spikes`);
      spikes.replaceChildren(found.spikes.length ? table(`Steps that stand out, of ${count(found.first)} to ${count(found.end - 1)}`, [
        ["step", (s) => el("button", { type: "button", class: "link", onclick: () => show(s.step) }, count(s.step))],
        ["mean loss", (s) => real(s.mean), true], ["median before", (s) => real(s.median), true],
        ["score", (s) => (s.z == null ? `not finite${s.steps > 1 ? `, for ${count(s.steps)} steps` : ""}` : real(s.z)), true, "robust deviations from the median of the 64 steps before"],
        ["highest losses", (s) => (s.rows ?? []).map((row) => `row ${row.row}: ${loss(row)}`).slice(0, 3).join(", ")]], found.spikes)
        : el("p", { class: "note" }, found.end > found.first ? `No step of ${count(found.first)} to ${count(found.end - 1)} stands out.` : "No losses were reported yet."));
    } catch (error) { spikes.replaceChildren(el("p", { class: "note" }, error.message)); } finally { find.disabled = false; }
  }

  function show(step) {
    input.value = Math.max(0, Math.trunc(step) || 0);
    onshow(Number(input.value));
    return read(0);
  }

  return {
    show,
    node: section("Rows of a step", el("p", {}, "Click on the loss curve, or name a step: which rows were in it, on which rank, with what loss."), form, spikes, told, rows, el("div", { class: "bar" }, more)),
    update(view) {
      dataset = view.dataset;
      if (input.value === "" && view.standing.step != null) input.value = view.losses.points.at(-1)?.step ?? view.standing.step;
      input.max = (view.total_steps ?? 0) > 0 ? view.total_steps - 1 : null;
    },
  };
}
