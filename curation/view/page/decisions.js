// What was decided: a facet of the page, and the file that the server writes at every change.

const NONE = "(none)";

export class Decisions {
  static BUTTONS = [["keep", "keep"], ["keep even leaks", "keep although it leaks"], ["drop", "drop"], ["undecide", ""]];

  constructor(rows, get) {
    this.get = get;
    const values = [NONE, "keep", "keep although it leaks", "drop", "not a duplicate"];
    this.facet = {
      name: "decision", values, starts: null, codes: new Uint16Array(rows), chosen: new Set(),
      counts: new Uint32Array(values.length),
    };
  }

  async load() {
    this.#take(await (await this.get("decisions")).json());
  }

  // rows: what is decided about; other: the row that they are no copy of.
  async change(decision, rows, other = null) {
    const body = JSON.stringify({ decision, rows: [...rows], other });
    this.#take(await (await this.get("decisions", {}, false, { method: "POST", body })).json());
  }

  #take({ decisions }) {
    const { codes, values } = this.facet;
    codes.fill(0);
    for (const { decision, row, other } of decisions) {
      for (const one of [row, other]) {
        const known = one !== null && one >= 0;
        if (known && !(decision === "not a duplicate" && codes[one])) codes[one] = values.indexOf(decision);
      }
    }
  }
}
