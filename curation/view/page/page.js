// The page: asks what the run is, and ties filters, pictures, pairs, map, decisions and details together.

import { Decisions } from "./decisions.js";
import { Detail } from "./detail.js";
import { FacetList, Filters, loadFacet } from "./filters.js";
import { Grid } from "./grid.js";
import { PointMap } from "./map.js";
import { PairList } from "./pairs.js";

const at = (id) => document.getElementById(id);

// Ask the server; the address of the page carries the token, and every other address is below it.
async function get(path, query = {}, evenRefused = false, options = {}) {
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
  constructor(run, facets, decisions) {
    this.run = run;
    this.decisions = decisions;
    this.filters = new Filters(run.rows, [...facets, decisions.facet]);
    this.selected = new Uint8Array(run.rows);
    this.lists = this.filters.facets.map((facet) => new FacetList(facet, at("filters"), () => this.update()));
    const open = (row) => this.detail.show(row);
    this.detail = new Detail(at("detail"), get, open);
    this.grid = new Grid(at("pictures"), this.selected, get, open, () => this.count());
    at("title").textContent = `${run.kind}: ${run.name}`;
    at("title").title = run.where;
    document.title = `${run.name} - granary view`;
    this.#tools();
    this.#decide();
    this.#similar();
    this.#views(facets, open);
  }

  #tools() {
    let waiting;
    at("search").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.search(at("search").value.trim()), 150);
    });
    at("select-all").addEventListener("click", () => this.select(this.grid.rows, 1));
    at("select-none").addEventListener("click", () => this.select(this.selected.keys(), 0));
    for (const format of ["csv", "jsonl"]) at(`export-${format}`).addEventListener("click", () => this.export(format));
  }

  // Decisions are about the selection, or about the picture that is open.
  #decide() {
    if (!this.run.decides) return;
    const act = async (word, rows, other) => {
      await this.decisions.change(word, rows, other);
      this.update(false);
    };
    this.act = act;
    at("tools").append("selected:");
    for (const [name, word] of Decisions.BUTTONS) {
      const button = document.createElement("button");
      button.textContent = name;
      button.addEventListener("click", () => act(word, this.chosen()));
      at("tools").append(button);
      this.detail.actions.push([name, (row) => act(word, [row])]);
    }
    this.detail.apart = (row, other) => act("not a duplicate", [row], other);
  }

  #similar() {
    for (const space of this.run.spaces) {
      this.detail.actions.push([`similar (${space})`, async (row) => {
        this.#ranked(await (await get("similar", { row, space })).json());
      }]);
    }
    at("own").hidden = !this.run.own;
    at("file").addEventListener("change", async () => {
      const [body] = at("file").files;
      at("file").value = "";
      if (body) this.#ranked(await (await get("similar", {}, false, { method: "POST", body })).json());
    });
  }

  // Show pictures by their similarity, until the next filter.
  #ranked({ rows, similarities }) {
    const known = new Map(rows.map((one, place) => [one, similarities[place]]));
    this.open("pictures");
    this.order = Uint32Array.from(rows);
    this.grid.show(this.order, true, (one) => known.get(one)?.toFixed(4) ?? "");
    this.count();
  }

  #views(facets, open) {
    const views = [["pictures", "Pictures"]];
    if (this.run.pairs) views.push(["duplicates", "Duplicates"]);
    if (this.run.spaces.length) views.push(["map", "Map"]);
    this.tabs = views.map(([view, name]) => {
      const tab = document.createElement("button");
      tab.role = "tab";
      tab.textContent = name;
      tab.dataset.view = view;
      tab.addEventListener("click", () => this.open(view));
      return tab;
    });
    at("tabs").append(...this.tabs);
    this.pairs = new PairList(at("duplicates"), get, open, this.act && ((row, other) => this.act("not a duplicate", [row], other)));
    const places = async (space) => new Float32Array(await (await get("map", { space })).arrayBuffer());
    const { rows, spaces } = this.run;
    this.map = new PointMap(at("map"), rows, this.filters.facets, spaces, places, (some) => this.lasso(some), open);
    this.map.passes = this.filters.fails;
    this.open("pictures");
  }

  // Show a view, which asks for what it needs the first time.
  async open(view) {
    for (const tab of this.tabs) {
      tab.setAttribute("aria-selected", tab.dataset.view === view);
      at(tab.dataset.view).hidden = tab.dataset.view !== view;
    }
    if (view === "duplicates") await (this.loaded ??= this.pairs.load());
    if (view === "map") {
      await this.map.show();
      document.body.dataset.mapped = "yes";
    }
  }

  // Filter anew and show what is left; the time it takes stands in the document, for measurements.
  update(top = true) {
    const start = performance.now();
    const shown = this.filters.apply();
    for (const list of this.lists) list.show();
    if (top) this.order = null;
    this.grid.show(this.order ?? shown, top, this.order ? null : () => "");
    if (!at("map").hidden) this.map.draw();
    this.count();
    document.body.dataset.filtered = (performance.now() - start).toFixed(1);
  }

  count() {
    let chosen = 0;
    for (const one of this.selected) chosen += one;
    const number = (value) => value.toLocaleString("en");
    const { rows, total } = this.run;
    const whole = rows < total ? `the first ${number(rows)} of ${number(total)}` : number(rows);
    const shown = this.order ? `the ${number(this.order.length)} most similar` : number(this.filters.shown.length);
    at("count").textContent = `${shown} of ${whole}` + (chosen ? `; ${number(chosen)} selected` : "");
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
    document.body.dataset.searched = text;
  }

  // Show the rows inside a lasso alone; null: all again.
  lasso(rows) {
    if (rows === null) this.filters.masks.delete("lasso");
    else this.mask("lasso", rows);
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

  chosen() {
    return Uint32Array.from([...this.selected.keys()].filter((row) => this.selected[row]));
  }

  // Save the selection, or all that is shown where nothing is selected.
  async export(format) {
    const chosen = this.chosen();
    const body = chosen.length ? chosen : this.grid.rows;
    const answer = await get("export", { format }, false, { method: "POST", body });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = `pictures.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
}

const run = await (await get("run")).json();
const decisions = new Decisions(run.rows, get);
const [facets] = await Promise.all([
  Promise.all(run.facets.map((facet) => loadFacet(facet, run.rows, get))),
  run.decides ? decisions.load() : null,
]);
window.page = new Page(run, facets, decisions);
window.page.update();
document.body.dataset.ready = performance.now().toFixed(0);
