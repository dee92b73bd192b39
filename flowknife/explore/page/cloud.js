// A cloud of images as points: zoom by wheel, buttons or + and -, move by dragging, point at one to see it, click to choose.

class ImageCloud {
  /**
   * @param parent element that the plot is put into
   * @param options items (each with canvas(), its picture), xy (item => [x, y] or null), shade (item => colour),
   *   chosen (item => whether it is marked), also (returns one more item that is shown), pick (called with the item that is chosen), title, label
   */
  constructor(parent, options) {
    Object.assign(this, options, { pointed: null });
    this.plot = new Plot(parent, { title: options.title, label: options.label, x: [-1, 1], y: [-1, 1], aspect: 0.8, draw: () => this.draw() });
    const { canvas } = this.plot;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-roledescription", "cloud of images: arrow keys go to the next one, Enter chooses it, plus and minus zoom");
    canvas.classList.add("movable");
    this.listen(canvas);
  }

  frame() {
    const all = this.items.map(this.xy).filter(Boolean);
    this.plot.x = span(all.map((p) => p[0]), 0.2, 0.01); // a few that lie far out are seen from further away
    this.plot.y = span(all.map((p) => p[1]), 0.2, 0.01);
    this.plot.redraw();
  }

  draw() {
    const { plot } = this, c = plot.context;
    for (const item of new Set([...this.items, this.also()])) {
      const p = this.xy(item);
      if (!p) continue;
      const marked = this.chosen(item), size = marked ? 9 : 5;
      c.fillStyle = this.shade(item);
      c.globalAlpha = marked ? 1 : 0.75;
      c.fillRect(plot.px(p[0]) - size / 2, plot.py(p[1]) - size / 2, size, size);
      c.globalAlpha = 1;
      if (marked) plot.ring(p[0], p[1], colour("warm"), 9);
    }
    if (!this.pointed || !this.xy(this.pointed)) return;
    const [x, y] = this.xy(this.pointed), picture = this.pointed.canvas(), side = 96;
    const wide = side * Math.min(1, picture.width / picture.height), high = side * Math.min(1, picture.height / picture.width);
    const left = Math.min(plot.px(x) + 12, plot.width - wide - 14), top = Math.max(Math.min(plot.py(y) + 12, plot.height - high - 40), 16);
    c.imageSmoothingEnabled = false;
    c.fillStyle = colour("ink");
    c.fillRect(left - 2, top - 2, wide + 4, high + 4);
    c.drawImage(picture, left, top, wide, high);
    plot.ring(x, y, colour("ink"), 7);
  }

  nearest(px, py, within = 18, way = null) {
    let best = null, least = within ** 2;
    for (const item of this.items) {
      const p = this.xy(item);
      if (!p || (way && item === this.pointed)) continue;
      const dx = this.plot.px(p[0]) - px, dy = this.plot.py(p[1]) - py;
      if (way && (dx * way[0] + dy * way[1] <= 0 || Math.abs(dx * way[1]) + Math.abs(dy * way[0]) > Math.abs(dx * way[0] + dy * way[1]))) continue;
      if (dx * dx + dy * dy < least) [best, least] = [item, dx * dx + dy * dy];
    }
    return best;
  }

  zoom(factor, [x, y] = [(this.plot.x[0] + this.plot.x[1]) / 2, (this.plot.y[0] + this.plot.y[1]) / 2]) {
    this.plot.x = this.plot.x.map((v) => x + (v - x) * factor);
    this.plot.y = this.plot.y.map((v) => y + (v - y) * factor);
    this.plot.redraw();
  }

  point(item) { if (item !== this.pointed) { this.pointed = item; this.plot.redraw(); } }

  listen(canvas) {
    const place = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    let held = null, dragged = false;
    const touches = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      touches.set(event.pointerId, place(event));
      held = place(event);
      dragged = false;
    });
    canvas.addEventListener("pointermove", (event) => {
      const now = place(event), before = touches.get(event.pointerId);
      if (!before) { this.point(this.nearest(...now)); return; }
      if (touches.size === 2) { // two fingers
        const [other] = [...touches.entries()].filter(([id]) => id !== event.pointerId).map(([, p]) => p);
        const far = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]);
        this.zoom(far(before) / Math.max(far(now), 1));
        dragged = true;
      } else if (dragged || Math.hypot(now[0] - held[0], now[1] - held[1]) > 4) {
        dragged = true;
        const [dx, dy] = [(before[0] - now[0]) / this.plot.perX, (now[1] - before[1]) / this.plot.perY];
        this.plot.x = this.plot.x.map((v) => v + dx);
        this.plot.y = this.plot.y.map((v) => v + dy);
        this.plot.redraw();
      }
      touches.set(event.pointerId, now);
    });
    const end = (event) => {
      touches.delete(event.pointerId);
      if (event.type !== "pointerup" || dragged) return;
      const item = this.nearest(...place(event), 24);
      if (item) { this.point(item); this.pick(item); }
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("pointerleave", () => { if (!touches.size && document.activeElement !== canvas) this.point(null); });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(0.0015 * event.deltaY), this.plot.at(event));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (way) {
        const from = this.pointed && this.xy(this.pointed);
        const [px, py] = from ? [this.plot.px(from[0]), this.plot.py(from[1])] : [this.plot.width / 2, this.plot.height / 2];
        this.point(this.nearest(px, py, 1e6, from ? way : null) || this.pointed);
      } else if ((event.key === "Enter" || event.key === " ") && this.pointed) this.pick(this.pointed);
      else if (event.key === "+" || event.key === "=") this.zoom(0.8);
      else if (event.key === "-") this.zoom(1.25);
      else return;
      event.preventDefault();
    });
  }
}
