// The threshold of near duplicates: what any other would remove, and the pairs on both sides of it.

import { frame } from "./grid.js";

const SHOWN = 25; // pairs of a side

export class PairList {
  // opened(row): for a click on a picture. decide(row, other): for the button of a pair.
  constructor(parent, get, opened, decide) {
    Object.assign(this, { get, opened, decide });
    this.told = document.createElement("p");
    this.told.textContent = "Looking for pairs\u2026";
    this.slider = document.createElement("input");
    Object.assign(this.slider, { type: "range", step: 0.001, disabled: true });
    this.slider.setAttribute("aria-label", "duplicate threshold");
    this.slider.addEventListener("input", () => this.show());
    this.above = document.createElement("div");
    this.below = document.createElement("div");
    const sides = document.createElement("div");
    sides.className = "sides";
    sides.append(this.above, this.below);
    const whole = document.createElement("div");
    whole.className = "scroll pairs";
    whole.append(this.slider, this.told, sides);
    parent.append(whole);
  }

  async load() {
    const bytes = await (await this.get("pairs")).arrayBuffer(), count = bytes.byteLength / 12;
    this.similarity = new Float32Array(bytes, 0, count);
    this.i = new Uint32Array(bytes, 4 * count, count);
    this.j = new Uint32Array(bytes, 8 * count, count);
    this.about = await (await this.get("threshold")).json();
    Object.assign(this.slider, { min: this.about.lowest, max: 1, value: this.about.threshold, disabled: false });
    this.slider.value = this.about.threshold;
    this.show();
  }

  // The number of pairs above a threshold: similarities fall.
  removed(threshold) {
    const exact = Math.fround(threshold);
    let low = 0, high = this.similarity.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.similarity[middle] > exact) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  show() {
    const { threshold, note } = this.about, at = +this.slider.value, number = (value) => value.toLocaleString("en");
    const removed = this.removed(at), then = this.removed(threshold);
    this.told.textContent =
      `At ${at.toFixed(3)}, ${number(removed)} pictures would be removed as near duplicates; ` +
      `the run removed ${number(then)} at ${threshold}. ${note}`;
    this.told.dataset.removed = removed;
    const up = [], down = [];
    for (let pair = removed - 1; pair >= 0 && up.length < SHOWN; pair--) up.push(pair);
    for (let pair = removed; pair < this.similarity.length && down.length < SHOWN; pair++) down.push(pair);
    this.#side(this.above, "One of each would be removed, the closest calls first", up);
    this.#side(this.below, "Both of each would stay, the closest calls first", down);
  }

  #side(parent, title, pairs) {
    const heading = document.createElement("h2");
    heading.textContent = title;
    parent.replaceChildren(heading, ...pairs.map((pair) => this.#pair(pair)));
    if (!pairs.length) parent.append("There are none.");
  }

  #pair(pair) {
    const box = document.createElement("div"), text = document.createElement("div");
    box.className = "pair";
    for (const row of [this.i[pair], this.j[pair]]) {
      const picture = frame({ row }, this.get);
      picture.addEventListener("click", () => this.opened(row));
      box.append(picture);
    }
    const number = document.createElement("div"), button = document.createElement("button");
    number.textContent = this.similarity[pair].toFixed(4);
    button.textContent = "not a duplicate";
    button.addEventListener("click", async () => {
      await this.decide(this.i[pair], this.j[pair]);
      button.disabled = true;
    });
    text.append(number, button);
    box.append(text);
    return box;
  }
}
