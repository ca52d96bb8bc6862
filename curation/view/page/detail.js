// The picture that was clicked: large, what is known of it, its story, and the pictures that decided about it.

import { frame } from "./grid.js";

function line(parent, kind, text) {
  const element = document.createElement(kind);
  element.textContent = text;
  parent.append(element);
  return element;
}

export class Detail {
  // actions: [name, function of the row] that buttons offer. open(row): shows another row.
  constructor(parent, get, open) {
    Object.assign(this, { parent, get, open });
    this.actions = [];
    this.apart = null; // called with two rows that are no near duplicates
    this.row = -1;
  }

  async show(row) {
    this.row = row;
    const { row: facts, story, beside } = await (await this.get("row", { row })).json();
    if (this.row !== row) return; // another one was clicked meanwhile
    this.parent.replaceChildren();
    this.parent.hidden = false;
    const close = line(this.parent, "button", "close");
    close.addEventListener("click", () => (this.parent.hidden = true));
    this.parent.append(frame({ row, size: "large" }, this.get));
    this.#buttons(row);
    if (facts.label) line(this.parent, "p", `label: ${facts.label}`);
    for (const caption of facts.captions ?? []) line(this.parent, "p", `\u201c${caption}\u201d`);
    line(this.parent, "pre", story);
    for (const other of beside) this.#beside(other);
  }

  #buttons(row) {
    const tools = line(this.parent, "p", "");
    for (const [name, act] of this.actions) {
      line(tools, "button", name).addEventListener("click", () => act(row));
      tools.append(" ");
    }
  }

  #beside({ what, uri, row, role, similarity }) {
    const box = document.createElement("div");
    box.className = "beside";
    box.append(frame(row === null ? { role, uri } : { row }, this.get));
    const text = line(box, "div", "");
    line(text, "strong", what);
    line(text, "div", uri);
    if (similarity !== null) line(text, "div", `similarity ${similarity.toFixed(4)}`);
    if (row !== null) {
      box.dataset.row = row;
      box.firstChild.addEventListener("click", () => this.open(row));
    }
    if (row !== null && this.apart) {
      const of = this.row;
      line(text, "button", "not a duplicate").addEventListener("click", () => this.apart(of, row));
    }
    this.parent.append(box);
  }
}
