// The page: asks what the run is, and ties filters, pictures and details together.

import { Detail } from "./detail.js";
import { FacetList, Filters, loadFacet } from "./filters.js";
import { Grid } from "./grid.js";

const at = (id) => document.getElementById(id);

// Ask the server; the address of the page carries the token, and every other address is below it.
export async function get(path, query = {}, evenRefused = false, options = {}) {
  const answer = await fetch(`${path}?${new URLSearchParams(query)}`, options);
  if (!answer.ok && !evenRefused) throw new Error((await answer.json()).error);
  return answer;
}

function tell(problem) {
  at("problem").textContent = problem;
  at("problem").hidden = !problem;
}

window.addEventListener("unhandledrejection", (event) => tell(event.reason?.message ?? String(event.reason)));
window.addEventListener("error", (event) => tell(event.message));

class Page {
  constructor(run, facets) {
    this.run = run;
    this.filters = new Filters(run.rows, facets);
    this.selected = new Uint8Array(run.rows);
    this.lists = facets.map((facet) => new FacetList(facet, at("filters"), () => this.update()));
    this.detail = new Detail(at("detail"), get, (row) => this.detail.show(row));
    this.grid = new Grid(at("pictures"), this.selected, get, (row) => this.detail.show(row), () => this.count());
    at("title").textContent = `${run.kind}: ${run.name}`;
    at("title").title = run.where;
    document.title = `${run.name} - granary view`;
    this.#tools();
  }

  #tools() {
    let waiting;
    at("search").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.search(at("search").value.trim()), 150);
    });
    at("select-all").addEventListener("click", () => this.select(this.filters.shown, 1));
    at("select-none").addEventListener("click", () => this.select(this.selected.keys(), 0));
    for (const format of ["csv", "jsonl"]) at(`export-${format}`).addEventListener("click", () => this.export(format));
  }

  // Filter anew and show what is left; the time it takes stands in the document, for measurements.
  update() {
    const start = performance.now();
    const shown = this.filters.apply();
    for (const list of this.lists) list.show();
    this.grid.show(shown);
    this.count();
    document.body.dataset.filtered = (performance.now() - start).toFixed(1);
  }

  count() {
    let chosen = 0;
    for (const one of this.selected) chosen += one;
    const number = (value) => value.toLocaleString("en");
    const { rows, total } = this.run;
    const whole = rows < total ? `the first ${number(rows)} of ${number(total)}` : number(rows);
    at("count").textContent =
      `${number(this.filters.shown.length)} of ${whole}` + (chosen ? `; ${number(chosen)} selected` : "");
  }

  async search(text) {
    this.searched = text;
    if (!text) this.filters.masks.delete("search");
    else {
      const hits = new Uint32Array(await (await get("search", { text })).arrayBuffer());
      if (this.searched !== text) return;
      this.mask("search", hits);
    }
    this.update();
  }

  // Let only these rows through.
  mask(name, rows) {
    const mask = new Uint8Array(this.run.rows);
    for (const row of rows) mask[row] = 1;
    this.filters.masks.set(name, mask);
  }

  select(rows, value) {
    for (const row of rows) this.selected[row] = value;
    this.grid.show(this.grid.rows, false);
    this.count();
  }

  // Save the selection, or all that is shown where nothing is selected.
  async export(format) {
    let rows = Uint32Array.from([...this.selected.keys()].filter((row) => this.selected[row]));
    if (!rows.length) rows = this.filters.shown;
    const answer = await get("export", { format }, false, { method: "POST", body: rows });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = `pictures.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
}

const run = await (await get("run")).json();
const facets = await Promise.all(run.facets.map((facet) => loadFacet(facet, run.rows, get)));
const page = new Page(run, facets);
page.update();
document.body.dataset.ready = performance.now().toFixed(0);
