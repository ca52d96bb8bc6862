// Which rows are shown: each facet is a typed array of small numbers, so a filter is a few passes over them.

export async function loadFacet({ name, values, many }, rows, get) {
  const bytes = await (await get("facet", { name })).arrayBuffer();
  const starts = many ? new Uint32Array(bytes, 0, rows + 1) : null;
  const codes = new Uint16Array(bytes, many ? 4 * (rows + 1) : 0);
  return { name, values, starts, codes, chosen: new Set(), counts: new Uint32Array(values.length) };
}

export class Filters {
  constructor(rows, facets) {
    this.rows = rows;
    this.facets = facets;
    this.masks = new Map(); // name -> Uint8Array of rows, 1 for those that stay
    this.fails = new Uint8Array(rows); // filters that a row fails; of facets only one matters for the counts
    this.failed = new Uint8Array(rows); // the facet it failed last, from 1
    this.shown = new Uint32Array(0);
  }

  // Decide every row, and count for each value of a facet the rows that all other filters let through.
  apply() {
    const { fails, failed, rows } = this;
    fails.fill(0);
    for (const mask of this.masks.values()) {
      for (let i = 0; i < rows; i++) if (!mask[i]) fails[i] = 2;
    }
    this.facets.forEach((facet, number) => {
      if (facet.chosen.size) this.#refuse(facet, number + 1);
    });
    this.facets.forEach((facet, number) => this.#count(facet, number + 1));
    let count = 0;
    for (let i = 0; i < rows; i++) count += fails[i] === 0;
    const shown = new Uint32Array(count);
    for (let i = 0, at = 0; i < rows; i++) if (!fails[i]) shown[at++] = i;
    this.shown = shown;
    return shown;
  }

  #refuse({ values, codes, starts, chosen }, number) {
    const { fails, failed, rows } = this;
    const wanted = new Uint8Array(values.length);
    for (const value of chosen) wanted[value] = 1;
    for (let i = 0; i < rows; i++) {
      let passes = false;
      if (starts) for (let at = starts[i]; at < starts[i + 1] && !passes; at++) passes = wanted[codes[at]] === 1;
      else passes = wanted[codes[i]] === 1;
      if (!passes && fails[i] < 2) {
        fails[i] += 1;
        failed[i] = number;
      }
    }
  }

  #count({ codes, starts, counts }, number) {
    const { fails, failed, rows } = this;
    counts.fill(0);
    for (let i = 0; i < rows; i++) {
      if (fails[i] > 1 || (fails[i] === 1 && failed[i] !== number)) continue;
      if (starts) for (let at = starts[i]; at < starts[i + 1]; at++) counts[codes[at]] += 1;
      else counts[codes[i]] += 1;
    }
  }
}

const SHOWN_VALUES = 12;

// The list of a facet's values with their counts; `changed` is called after a click.
export class FacetList {
  constructor(facet, parent, changed) {
    this.facet = facet;
    this.changed = changed;
    this.most = SHOWN_VALUES;
    const heading = document.createElement("h2");
    heading.textContent = facet.name;
    this.list = document.createElement("div");
    parent.append(heading);
    if (facet.values.length > SHOWN_VALUES) parent.append(this.#search());
    parent.append(this.list);
  }

  #search() {
    const input = document.createElement("input");
    input.type = "search";
    input.placeholder = `${this.facet.values.length.toLocaleString("en")} values`;
    input.setAttribute("aria-label", `values of ${this.facet.name}`);
    input.addEventListener("input", () => {
      this.text = input.value.toLowerCase();
      this.show();
    });
    return input;
  }

  show() {
    const { values, counts, chosen } = this.facet;
    const order = [];
    for (let value = 0; value < values.length; value++) {
      const named = !this.text || values[value].toLowerCase().includes(this.text);
      if (chosen.has(value) || (named && counts[value])) order.push(value);
    }
    order.sort((a, b) => chosen.has(b) - chosen.has(a) || counts[b] - counts[a] || a - b);
    const lines = order.slice(0, this.most).map((value) => this.#line(value));
    if (order.length > this.most) lines.push(this.#more(order.length - this.most));
    this.list.replaceChildren(...lines);
  }

  #line(value) {
    const { values, counts, chosen } = this.facet;
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = chosen.has(value);
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(value);
      else chosen.delete(value);
      this.changed();
    });
    const name = document.createElement("span");
    name.textContent = values[value];
    const number = document.createElement("span");
    number.className = "number";
    number.textContent = counts[value].toLocaleString("en");
    label.append(box, name, number);
    return label;
  }

  #more(count) {
    const button = document.createElement("button");
    button.textContent = `${count.toLocaleString("en")} more`;
    button.addEventListener("click", () => {
      this.most += 100;
      this.show();
    });
    return button;
  }
}
