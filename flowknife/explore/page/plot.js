// A plot on a canvas: axes, points, lines, bands and images in the units of the data, and a pointer that may be dragged,
// by touch, mouse or arrow keys.

/** Until the browser has shown what was drawn; a page that is not seen does not wait for it. */
const painted = () => new Promise((done) => {
  const unseen = setTimeout(done, 100);
  requestAnimationFrame(() => setTimeout(() => { clearTimeout(unseen); done(); }));
});

/** A colour of the page, by the name of its variable. */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** About `count` round numbers from low to high. */
function ticks(low, high, count = 5) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough) || 10 * power;
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + 1e-9 * step; v += step) found.push(Math.abs(v) < 1e-9 * step ? 0 : v);
  return found;
}

/** The range of numbers with a margin, robust against a few that lie far out. */
function span(values, margin = 0.1, share = 0) {
  const sorted = Float64Array.from(values).filter(Number.isFinite).sort();
  if (!sorted.length) return [-1, 1];
  const at = (q) => sorted[Math.round(q * (sorted.length - 1))];
  const [low, high] = [at(share), at(1 - share)];
  const room = margin * (high - low) || Math.abs(low) * 0.1 || 1;
  return [low - room, high + room];
}

class Plot {
  /**
   * @param parent element that the plot is put into
   * @param options label (for screen readers), title, x and y (ranges), xlabel, ylabel, aspect (height / width),
   *   equal (one unit is as long in both directions), log (x is shown as a logarithm), draw (called to draw it)
   */
  constructor(parent, options) {
    Object.assign(this, { aspect: 0.85, log: false, equal: false, margins: [14, 12, 38, 46] }, options);
    this.figure = element("figure", { className: "plot" }, parent);
    if (this.title) element("h3", { textContent: this.title }, this.figure);
    this.canvas = element("canvas", {}, this.figure);
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", this.label);
    this.context = this.canvas.getContext("2d");
    new ResizeObserver(() => this.resize()).observe(this.figure);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    this.resize();
  }

  resize() {
    const width = Math.max(Math.floor(this.figure.clientWidth), 120), height = Math.round(width * this.aspect);
    if (width === this.width && height === this.height) return;
    const dense = Math.min(devicePixelRatio || 1, 2);
    Object.assign(this, { width, height, dense });
    this.canvas.width = width * dense;
    this.canvas.height = height * dense;
    this.canvas.style.height = `${height}px`;
    this.redraw();
  }

  /** Draw in the next frame, once, however often it is asked for. */
  redraw() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => { this.asked = false; this.paint(); });
  }

  paint() {
    const c = this.context;
    c.setTransform(this.dense, 0, 0, this.dense, 0, 0);
    c.clearRect(0, 0, this.width, this.height);
    this.fit();
    this.axes();
    c.save();
    const [top, right, bottom, left] = this.margins;
    c.beginPath();
    c.rect(left, top, this.width - left - right, this.height - top - bottom);
    c.clip();
    if (this.draw) this.draw(this);
    c.restore();
  }

  /** The ranges that are shown; with `equal` one of them is widened. */
  fit() {
    const [top, right, bottom, left] = this.margins;
    let [x0, x1] = this.log ? this.x.map(Math.log) : this.x, [y0, y1] = this.y;
    const wide = this.width - left - right, high = this.height - top - bottom;
    if (this.equal) {
      const scale = Math.max((x1 - x0) / wide, Math.abs(y1 - y0) / high);
      const addX = (scale * wide - (x1 - x0)) / 2, addY = (Math.sign(y1 - y0) * (scale * high - Math.abs(y1 - y0))) / 2;
      x0 -= addX; x1 += addX; y0 -= addY; y1 += addY;
    }
    Object.assign(this, { x0, y0, perX: wide / (x1 - x0), perY: high / (y1 - y0), x1, y1 });
  }

  px(x) { return this.margins[3] + ((this.log ? Math.log(x) : x) - this.x0) * this.perX; }
  py(y) { return this.height - this.margins[2] - (y - this.y0) * this.perY; }
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = (event.clientX - box.left - this.margins[3]) / this.perX + this.x0;
    return [this.log ? Math.exp(x) : x, (this.height - this.margins[2] - (event.clientY - box.top)) / this.perY + this.y0];
  }

  /** A place within the axes: what is moved is never out of sight. */
  within(x, y) {
    const between = (v, a, b) => Math.min(Math.max(v, Math.min(a, b)), Math.max(a, b));
    return [between(x, ...(this.log ? [Math.exp(this.x0), Math.exp(this.x1)] : [this.x0, this.x1])), between(y, this.y0, this.y1)];
  }

  axes() {
    const c = this.context, [top, right, bottom, left] = this.margins, base = this.height - bottom, end = this.width - right;
    c.lineWidth = 1;
    c.strokeStyle = colour("rule");
    c.fillStyle = colour("quiet");
    c.font = "12px system-ui, sans-serif";
    c.textAlign = "center";
    c.textBaseline = "top";
    const fewer = Math.max(2, Math.round((end - left) / 70));
    const marks = this.log ? [0.2, 0.3, 0.5, 1, 2, 3, 5, 10].filter((v) => v >= this.x[0] && v <= this.x[1])
      : ticks(this.x0, this.x1, Math.min(fewer, 6));
    c.beginPath();
    for (const v of marks) { const x = Math.round(this.px(v)) + 0.5; c.moveTo(x, top); c.lineTo(x, base); }
    const up = ticks(Math.min(this.y0, this.y1), Math.max(this.y0, this.y1), Math.min(6, Math.max(2, Math.round((base - top) / 45))));
    for (const v of up) { const y = Math.round(this.py(v)) + 0.5; c.moveTo(left, y); c.lineTo(end, y); }
    c.stroke();
    for (const v of marks) c.fillText(short(v), this.px(v), base + 5);
    c.textAlign = "right";
    c.textBaseline = "middle";
    for (const v of up) c.fillText(short(v), left - 6, this.py(v));
    c.fillStyle = colour("ink");
    c.textAlign = "right";
    c.textBaseline = "bottom";
    if (this.xlabel) c.fillText(clipped(this.xlabel, 40), end, this.height - 2);
    c.textAlign = "left";
    c.textBaseline = "top";
    if (this.ylabel) c.fillText(clipped(this.ylabel, 40), left + 5, top + 3);
  }

  // -- marks ----------------------------------------------------------------------------------------------------------

  /** Points (n pairs); `shades` is one colour, or a function of the number of the point (null leaves it out). */
  points(xy, shades, size = 3, alpha = 1) {
    const c = this.context, groups = new Map();
    for (let i = 0; 2 * i < xy.length; i++) {
      const shade = typeof shades === "function" ? shades(i) : shades;
      if (shade === null) continue;
      if (!groups.has(shade)) groups.set(shade, []);
      groups.get(shade).push(i);
    }
    c.globalAlpha = alpha;
    for (const [shade, members] of groups) {
      c.fillStyle = shade;
      for (const i of members) c.fillRect(this.px(xy[2 * i]) - size / 2, this.py(xy[2 * i + 1]) - size / 2, size, size);
    }
    c.globalAlpha = 1;
  }

  /** Lines of `length` points each, one after another in `xy`. */
  lines(xy, length, shade, width = 1, alpha = 1) {
    const c = this.context;
    c.globalAlpha = alpha;
    c.strokeStyle = shade;
    c.lineWidth = width;
    c.lineJoin = "round";
    c.beginPath();
    for (let i = 0; 2 * i < xy.length; i++) {
      if (i % length) c.lineTo(this.px(xy[2 * i]), this.py(xy[2 * i + 1]));
      else c.moveTo(this.px(xy[2 * i]), this.py(xy[2 * i + 1]));
    }
    c.stroke();
    c.globalAlpha = 1;
  }

  /** A closed polygon. */
  area(xy, shade, alpha = 0.25) {
    const c = this.context;
    c.globalAlpha = alpha;
    c.fillStyle = shade;
    c.beginPath();
    for (let i = 0; 2 * i < xy.length; i++) c.lineTo(this.px(xy[2 * i]), this.py(xy[2 * i + 1]));
    c.fill();
    c.globalAlpha = 1;
  }

  /** A ring with a rim that is seen on any ground. */
  ring(x, y, shade, radius = 8) {
    const c = this.context;
    for (const [width, own] of [[5, colour("card")], [2.5, shade]]) {
      c.lineWidth = width;
      c.strokeStyle = own;
      c.beginPath();
      c.arc(this.px(x), this.py(y), radius, 0, 7);
      c.stroke();
    }
  }

  // -- the pointer ----------------------------------------------------------------------------------------------------

  /**
   * Let something be moved.
   * @param moved called with (x, y, phase), a place within the axes, and phase "start", "move" or "end"
   * @param where returns the present place, from which arrow keys go on
   * @param other says of a key event whether `moved` is called for it too, with the present place
   */
  movable(moved, where, other = () => false) {
    const { canvas } = this;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-roledescription", "draggable plot, arrow keys move the marker");
    canvas.classList.add("movable");
    let held = false;
    canvas.addEventListener("pointerdown", (event) => {
      held = true;
      canvas.setPointerCapture(event.pointerId);
      moved(...this.within(...this.at(event)), "start", event);
    });
    canvas.addEventListener("pointermove", (event) => { if (held) moved(...this.within(...this.at(event)), "move", event); });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => { if (held) { held = false; moved(...this.within(...this.at(event)), "end", event); } });
    }
    canvas.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key] || (other(event) ? [0, 0] : null);
      if (!way || !where()) return;
      event.preventDefault();
      const [x, y] = where(), step = event.shiftKey ? 20 : 4;
      const shown = this.log ? Math.exp(Math.log(x) + (way[0] * step) / this.perX) : x + (way[0] * step) / this.perX;
      moved(...this.within(shown, y + (way[1] * step) / Math.abs(this.perY) * Math.sign(this.perY)), "key", event);
    });
  }
}

/** A number in a few characters, with a true minus sign. */
function short(value, digits = 3) {
  if (!Number.isFinite(value)) return value > 0 ? "∞" : value < 0 ? "−∞" : "–";
  const size = Math.abs(value);
  const text = size !== 0 && (size >= 1e5 || size < 1e-3) ? value.toExponential(Math.max(digits - 1, 0)) : String(+value.toPrecision(digits));
  return text.replaceAll("-", "−");
}

const clipped = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
