// The pictures, a tile each; only those near the window are in the document.

const WIDTH = 176, HEIGHT = 216, MOST_HEIGHT = 15e6; // a browser's elements end at about 33 million pixels
const KNOWN = 20000; // texts of tiles that are kept

export function frame(source, get) {
  const box = document.createElement("div");
  box.className = "frame";
  const image = document.createElement("img");
  image.alt = "";
  image.addEventListener("error", async () => {
    const answer = await get("picture", source, true).catch(() => null);
    if (answer && !answer.ok) box.textContent = (await answer.json()).error;
  });
  image.src = "picture?" + new URLSearchParams(source);
  box.append(image);
  return box;
}

export class Grid {
  // selected: Uint8Array of rows. opened(row), changed(): called for clicks on a tile and its box.
  constructor(parent, selected, get, opened, changed) {
    Object.assign(this, { selected, get, opened, changed });
    this.scroll = document.createElement("div");
    this.scroll.className = "scroll";
    this.space = document.createElement("div");
    this.scroll.append(this.space);
    parent.append(this.scroll);
    this.rows = new Uint32Array(0);
    this.tiles = new Map(); // place -> tile
    this.texts = new Map(); // row -> what stands below its picture
    this.note = () => "";
    this.scroll.addEventListener("scroll", () => this.#soon());
    new ResizeObserver(() => requestAnimationFrame(() => this.#layout())).observe(this.scroll);
  }

  // rows: in the order shown. note(row): a word below its picture.
  show(rows, top = true, note = null) {
    this.rows = rows;
    if (note) this.note = note;
    if (top) this.scroll.scrollTop = 0;
    for (const tile of this.tiles.values()) tile.remove();
    this.tiles.clear();
    this.#layout();
  }

  #layout() {
    this.columns = Math.max(1, Math.floor(this.scroll.clientWidth / WIDTH));
    this.whole = Math.ceil(this.rows.length / this.columns) * HEIGHT;
    this.space.style.height = `${Math.min(this.whole, MOST_HEIGHT)}px`;
    this.#draw();
  }

  #soon() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.#draw();
    });
  }

  // The height above the window: of more rows than an element has room for, in proportion.
  #top() {
    const room = this.scroll.clientHeight, high = Math.min(this.whole, MOST_HEIGHT);
    return this.whole <= MOST_HEIGHT ? this.scroll.scrollTop
      : (this.scroll.scrollTop / Math.max(1, high - room)) * (this.whole - room);
  }

  #draw() {
    const top = this.#top(), shift = this.scroll.scrollTop - top;
    const first = Math.max(0, Math.floor(top / HEIGHT) - 1) * this.columns;
    const last = Math.min(this.rows.length, (Math.ceil((top + this.scroll.clientHeight) / HEIGHT) + 1) * this.columns);
    for (const [place, tile] of this.tiles) {
      if (place < first || place >= last) {
        tile.remove();
        this.tiles.delete(place);
      }
    }
    for (let place = first; place < last; place++) {
      let tile = this.tiles.get(place);
      if (!tile) {
        tile = this.#tile(this.rows[place]);
        this.tiles.set(place, tile);
        this.scroll.append(tile);
      }
      tile.style.left = `${(place % this.columns) * WIDTH + 4}px`;
      tile.style.top = `${Math.floor(place / this.columns) * HEIGHT + shift + 4}px`;
    }
    this.#fetchTexts();
  }

  #tile(row) {
    const tile = document.createElement("div");
    tile.className = "tile";
    tile.tabIndex = 0;
    tile.dataset.row = row;
    const box = document.createElement("input");
    box.type = "checkbox";
    box.setAttribute("aria-label", "select");
    box.checked = this.selected[row] === 1;
    box.addEventListener("click", (event) => event.stopPropagation());
    box.addEventListener("change", () => {
      this.selected[row] = box.checked ? 1 : 0;
      this.changed();
    });
    const name = document.createElement("div"), verdict = document.createElement("div");
    name.className = "name";
    tile.append(frame({ row }, this.get), name, verdict, box);
    tile.addEventListener("click", () => this.opened(row));
    tile.addEventListener("keydown", (event) => event.key === "Enter" && this.opened(row));
    if (this.texts.has(row)) this.#write(tile, this.texts.get(row));
    return tile;
  }

  async #fetchTexts() {
    const wanted = [...this.tiles.values()].map((tile) => +tile.dataset.row).filter((row) => !this.texts.has(row));
    if (!wanted.length) return;
    if (this.texts.size > KNOWN) this.texts.clear();
    wanted.forEach((row) => this.texts.set(row, null));
    const answer = await this.get("rows", { rows: wanted.join(",") });
    (await answer.json()).forEach((text, at) => this.texts.set(wanted[at], text));
    for (const tile of this.tiles.values()) {
      const text = this.texts.get(+tile.dataset.row);
      if (text) this.#write(tile, text);
    }
  }

  #write(tile, text) {
    if (!text) return;
    const [, name, verdict] = tile.children;
    name.textContent = "\u200e" + text.uri;
    tile.title = [text.uri, text.reason, text.label, text.caption].filter(Boolean).join("\n");
    verdict.textContent = [`${text.status}, ${text.stage}`, this.note(+tile.dataset.row)].filter(Boolean).join("; ");
    verdict.className = text.status;
  }
}
