// The embeddings on two principal components: a point each, and a lasso.

const SHADES = [0x1a5fb4, 0xc01c28, 0x2ec27e, 0xe66100, 0x813d9c, 0x0b9cb3, 0x986a44, 0xd01b7a, 0x5e8c00, 0x6a6a66];
const FAINT = 0xd0d0cc, CLICK = 5; // pixels that a hand moves in a click

export class PointMap {
  // rows: their number. spaces: names of embeddings. load(space): gives the places. lassoed(rows or null), opened(row): called for a lasso (null: none any more) and a click.
  constructor(parent, rows, facets, spaces, load, lassoed, opened) {
    Object.assign(this, { rows, facets, load, lassoed, opened });
    this.canvas = document.createElement("canvas");
    this.over = document.createElement("canvas");
    this.passes = null; // Uint8Array, 0 for rows that are shown
    this.chooser = document.createElement("select");
    this.chooser.setAttribute("aria-label", "colours");
    for (const facet of facets.filter((one) => !one.starts)) this.chooser.add(new Option(facet.name));
    this.chooser.addEventListener("change", () => this.draw());
    this.space = document.createElement("select");
    this.space.setAttribute("aria-label", "embeddings");
    for (const space of spaces) this.space.add(new Option(space));
    this.space.addEventListener("change", () => this.show(true));
    this.legend = document.createElement("span");
    const bar = document.createElement("div"), hint = document.createElement("span");
    bar.className = "bar";
    hint.textContent = "drag: lasso; shift and drag: move; wheel: zoom; double click: all";
    bar.append(this.space, " ", this.chooser, " ", this.legend, hint);
    const room = document.createElement("div");
    room.className = "room";
    room.append(this.canvas, this.over);
    parent.append(bar, room);
    this.over.addEventListener("pointerdown", (event) => this.#begin(event));
    this.over.addEventListener("pointermove", (event) => this.#move(event));
    this.over.addEventListener("pointerup", (event) => this.#end(event));
    this.over.addEventListener("dblclick", () => this.#reset());
    this.over.addEventListener("wheel", (event) => this.#zoom(event), { passive: false });
    new ResizeObserver(() => requestAnimationFrame(() => this.draw())).observe(room);
  }

  // Draw the map, and ask for its places the first time, or when the space is another.
  async show(anew = false) {
    if (anew || !this.places) {
      this.places = await this.load(this.space.value); // x and y of each row, not a number where it has none
      this.#fit();
    }
    this.draw();
  }

  #fit() {
    let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let i = 0; i < this.rows; i++) {
      const x = this.places[2 * i], y = this.places[2 * i + 1];
      if (x < left) left = x;
      if (x > right) right = x;
      if (y < top) top = y;
      if (y > bottom) bottom = y;
    }
    const spread = Math.max(right - left, bottom - top, 1e-9);
    this.view = { x: (left + right) / 2, y: (top + bottom) / 2, spread: spread * 1.05 };
  }

  #reset() {
    this.#fit();
    this.draw();
    this.lassoed(null);
  }

  // A pixel of a place is scale * (place - centre) + half the size.
  #scale() {
    const { clientWidth: width, clientHeight: height } = this.over;
    return { width, height, scale: Math.min(width, height) / this.view.spread };
  }

  draw() {
    if (!this.places || !this.over.clientWidth) return;
    const { width, height, scale } = this.#scale();
    for (const canvas of [this.canvas, this.over]) Object.assign(canvas, { width, height });
    const context = this.canvas.getContext("2d");
    const image = context.createImageData(width, height), pixels = new Uint32Array(image.data.buffer);
    const facet = this.facets.find((one) => one.name === this.chooser.value);
    this.#points(pixels, width, height, scale, facet, false);
    this.#points(pixels, width, height, scale, facet, true);
    context.putImageData(image, 0, 0);
    this.#explain(facet);
  }

  #points(pixels, width, height, scale, { codes }, shown) {
    const { places, passes, view } = this;
    const colours = SHADES.map(little), faint = little(FAINT);
    const side = this.rows > 30000 ? 2 : this.rows > 3000 ? 4 : 7;
    for (let i = 0; i < this.rows; i++) {
      if ((passes[i] === 0) !== shown) continue;
      const x = Math.round((places[2 * i] - view.x) * scale + width / 2);
      const y = Math.round((places[2 * i + 1] - view.y) * scale + height / 2);
      if (!(x >= 0 && y >= 0 && x < width && y < height)) continue; // not a number too
      const colour = shown ? colours[Math.min(codes[i], SHADES.length - 1)] : faint;
      for (let line = y; line < Math.min(y + side, height); line++) {
        pixels.fill(colour, line * width + x, line * width + Math.min(x + side, width));
      }
    }
  }

  #explain({ values }) {
    const names = values.slice(0, SHADES.length - 1).map((name, value) => [name, SHADES[value]]);
    if (values.length >= SHADES.length) names.push(["others", SHADES.at(-1)]);
    this.legend.replaceChildren(...names.flatMap(([name, shade]) => {
      const dot = document.createElement("span"), text = document.createElement("span");
      dot.textContent = "\u25cf ";
      dot.style.color = `#${shade.toString(16).padStart(6, "0")}`;
      text.textContent = `${name.length > 40 ? name.slice(0, 39) + "\u2026" : name}  `;
      return [dot, text];
    }));
  }

  #begin(event) {
    this.over.setPointerCapture(event.pointerId);
    this.moving = event.shiftKey;
    this.path = [event.offsetX, event.offsetY];
    this.from = { ...this.view };
  }

  #move({ offsetX, offsetY }) {
    if (!this.path) return;
    const { scale, width, height } = this.#scale();
    if (this.moving) {
      this.view = { ...this.from, x: this.from.x - (offsetX - this.path[0]) / scale, y: this.from.y - (offsetY - this.path[1]) / scale };
      this.draw();
      return;
    }
    this.path.push(offsetX, offsetY);
    const context = this.over.getContext("2d");
    context.clearRect(0, 0, width, height);
    context.beginPath();
    for (let at = 0; at < this.path.length; at += 2) context.lineTo(this.path[at], this.path[at + 1]);
    context.closePath();
    context.strokeStyle = "#c01c28";
    context.stroke();
  }

  #end({ offsetX, offsetY }) {
    const path = this.path;
    this.path = null;
    if (!path || this.moving) return;
    if (path.length < 8 || Math.max(...path.map((value, at) => Math.abs(value - path[at % 2]))) < CLICK) this.#click(offsetX, offsetY);
    else this.lassoed(this.inside(path));
  }

  // The rows shown whose points are inside a polygon of pixels x, y, x, y, ... (even-odd rule).
  inside(path) {
    const { width, height, scale } = this.#scale(), corners = path.length / 2, found = [];
    const xs = path.filter((_, at) => at % 2 === 0), ys = path.filter((_, at) => at % 2);
    const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    for (let i = 0; i < this.rows; i++) {
      const x = (this.places[2 * i] - this.view.x) * scale + width / 2;
      const y = (this.places[2 * i + 1] - this.view.y) * scale + height / 2;
      if (this.passes[i] || !(x >= left && x <= right && y >= top && y <= bottom)) continue;
      let odd = false;
      for (let a = 0, b = corners - 1; a < corners; b = a++) {
        if (ys[a] > y !== ys[b] > y && x < ((xs[b] - xs[a]) * (y - ys[a])) / (ys[b] - ys[a]) + xs[a]) odd = !odd;
      }
      if (odd) found.push(i);
    }
    return found;
  }

  #click(x, y) {
    const { width, height, scale } = this.#scale();
    let best = 400, nearest = -1; // squared pixels
    for (let i = 0; i < this.rows; i++) {
      const dx = (this.places[2 * i] - this.view.x) * scale + width / 2 - x;
      const dy = (this.places[2 * i + 1] - this.view.y) * scale + height / 2 - y;
      if (!this.passes[i] && dx * dx + dy * dy < best) [best, nearest] = [dx * dx + dy * dy, i];
    }
    if (nearest >= 0) this.opened(nearest);
  }

  #zoom(event) {
    event.preventDefault();
    const { width, height, scale } = this.#scale(), factor = Math.exp(event.deltaY / 500);
    const x = (event.offsetX - width / 2) / scale + this.view.x, y = (event.offsetY - height / 2) / scale + this.view.y;
    this.view = { x: x + (this.view.x - x) * factor, y: y + (this.view.y - y) * factor, spread: this.view.spread * factor };
    this.draw();
  }
}

// A colour as the bytes of a pixel, opaque.
function little(shade) {
  return ((0xff << 24) | ((shade & 0xff) << 16) | (shade & 0xff00) | (shade >> 16)) >>> 0;
}
