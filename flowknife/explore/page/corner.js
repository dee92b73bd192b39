// Pairs of parameters: the distribution of each on the diagonal, of two below it.

class Corner {
  constructor(parent, names, ranges) {
    Object.assign(this, { names, ranges, size: names.length, x: null, n: 0, marks: null });
    this.plot = new Plot(parent, {
      title: "Parameters, two by two", label: `posterior of ${names.join(", ")}`, x: [0, 1], y: [0, 1], aspect: names.length > 1 ? 0.95 : 0.5,
      margins: [2, 2, 2, 2], draw: () => this.draw(),
    });
    this.plot.axes = () => {};
    this.beyond = element("p", { className: "note" }, this.plot.figure);
  }

  show(x, n, width, columns) {
    Object.assign(this, { x, n, width, columns });
    let count = 0;
    for (let row = 0; row < n; row++) {
      count += columns.some((j, k) => { const v = x[row * width + j]; return !(v >= this.ranges[k][0] && v <= this.ranges[k][1]); });
    }
    const text = count > 0.02 * n ? `${count} of ${n} draws lie beyond these axes, which span the prior.` : "The axes span the prior.";
    if (this.beyond.textContent !== text) this.beyond.textContent = text; // the same text again would lay out the page again
    this.plot.redraw();
  }

  draw() {
    if (!this.x) return;
    const { plot, size, ranges } = this, c = plot.context, left = 8, bottom = 36;
    const cell = [(plot.width - left) / size, (plot.height - bottom) / size];
    c.font = "11px system-ui, sans-serif";
    for (let row = 0; row < size; row++) {
      for (let column = 0; column <= row; column++) {
        const x0 = left + column * cell[0], y0 = row * cell[1], [w, h] = [cell[0] - 6, cell[1] - 6];
        c.strokeStyle = colour("rule");
        c.lineWidth = 1;
        c.strokeRect(x0 + 0.5, y0 + 0.5, w, h);
        const px = (v) => x0 + (w * (v - ranges[column][0])) / (ranges[column][1] - ranges[column][0]);
        c.save();
        c.beginPath();
        c.rect(x0, y0, w, h);
        c.clip();
        c.fillStyle = colour("accent");
        if (row === column) this.histogram(x0, y0, w, h, column);
        else {
          c.globalAlpha = 0.35;
          for (let i = 0; i < this.n; i++) {
            const v = this.x[i * this.width + this.columns[row]];
            c.fillRect(px(this.x[i * this.width + this.columns[column]]) - 1, y0 + h - (h * (v - ranges[row][0])) / (ranges[row][1] - ranges[row][0]) - 1, 2, 2);
          }
          c.globalAlpha = 1;
        }
        c.restore();
        if (row === size - 1) {
          c.fillStyle = colour("quiet");
          c.textAlign = "left";
          c.textBaseline = "top";
          const ends = ranges[column].map((v) => short(v, 2)), tight = ends.reduce((sum, text) => sum + c.measureText(text).width, 0) > w - 8;
          c.fillText(ends[0], x0 + 2, y0 + h + 2);
          c.textAlign = "right";
          c.fillText(ends[1], x0 + w - (tight ? 0 : 4), y0 + h + (tight ? 15 : 2)); // below where both do not fit side by side
        }
        if (row === column) {
          c.fillStyle = colour("ink");
          c.textAlign = "left";
          c.textBaseline = "top";
          const [whole, alone] = [this.names[column], this.names[column].replace(/ \([^()]*\)$/, "")]; // without its unit
          c.fillText(c.measureText(whole).width < w - 6 ? whole : clipped(alone, Math.max(4, Math.floor(w / 6.5))), x0 + 4, y0 + 4);
        }
      }
    }
  }

  histogram(x0, y0, w, h, column) {
    const bins = 30, counts = new Float64Array(bins), [low, high] = this.ranges[column];
    for (let i = 0; i < this.n; i++) {
      const k = Math.floor((bins * (this.x[i * this.width + this.columns[column]] - low)) / (high - low));
      if (k >= 0 && k < bins) counts[k]++;
    }
    const most = Math.max(...counts, 1), c = this.plot.context;
    counts.forEach((count, k) => { const tall = (Math.min(0.75 * h, h - 17) * count) / most; c.fillRect(x0 + (w * k) / bins, y0 + h - tall, w / bins + 0.5, tall); });
  }
}
