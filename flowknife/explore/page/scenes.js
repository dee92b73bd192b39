// What an inverse problem looks like: the observation, which can be dragged, and the parameters that explain it.
// A scene has `place(y)`, which moves the observation at once, and `show(y, x, n)`: redraw with n draws x of its posterior.

/** The opacity of one line of many, on a dark ground more. */
const faint = (alpha) => (matchMedia("(prefers-color-scheme: dark)").matches ? 1.8 * alpha : alpha);

const SCENES = {
  /** A robot arm whose hand is at y. */
  arm(page, place, engine, changed) {
    const { lengths } = page.scene, size = lengths.length + 1;
    let arms = new Float64Array(0), y = null;
    const joints = (x, n) => {
      const out = new Float64Array(n * 2 * size);
      for (let row = 0, to = 0; row < n; row++) {
        let angle = 0, px = 0, py = x[row * size];
        out[to++] = px; out[to++] = py;
        lengths.forEach((length, i) => {
          angle += x[row * size + 1 + i];
          px += length * Math.cos(angle); py += length * Math.sin(angle);
          out[to++] = px; out[to++] = py;
        });
      }
      return out;
    };
    const plot = new Plot(place, {
      title: "Poses of the arm", label: "poses of the arm that reach the hand; drag the hand", x: [-0.3, 2.3], y: [-1.6, 1.6], equal: true,
      xlabel: page.y_names[0], ylabel: page.y_names[1],
      draw(own) {
        own.lines(Float64Array.of(0, -9, 0, 9), 2, colour("rule"), 3);
        own.lines(arms, size, colour("accent"), 1, faint(0.22));
        own.points(arms.filter((_, i) => i % (2 * size) >= 2 * size - 2), colour("accent"), 4, 0.8);
        if (y) own.ring(y[0], y[1], colour("warm"), 10);
      },
    });
    element("p", { className: "note", textContent: "Drag the ring: the hand. A blue square is where a drawn pose puts the hand; where the model is right, within the ring." }, plot.figure);
    plot.movable((px, py) => changed(Float64Array.of(px, py)), () => y);
    return { plot, place(observed) { y = observed; plot.redraw(); }, show(observed, x, n) { arms = joints(x, n); plot.redraw(); } };
  },

  /** A gravity anomaly above, the depth of the basin below. */
  basin(page, place, engine, changed) {
    const { edges, stations, contrast, height } = page.scene, prisms = edges.length - 1;
    const anomaly = (depth, start) => stations.map((station) => {
      let sum = 0;
      for (let i = 0; i < prisms; i++) {
        const top = height, bottom = height + depth[start + i];
        const term = (t) => t * Math.log1p((bottom ** 2 - top ** 2) / (t * t + top * top)) + 2 * bottom * Math.atan(t / bottom) - 2 * top * Math.atan(t / top);
        sum += term(edges[i + 1] - station) - term(edges[i] - station);
      }
      return contrast * sum;
    });
    return curves(page, place, {
      changed, along: stations, xlabel: "distance (km)", curve: "Gravity anomaly", unit: "mGal", below: "Basin", across: "depth (km)",
      edges, upright: false, predict: (x, n) => {
        const some = Math.min(n, 40), out = [];
        for (let row = 0; row < some; row++) out.push(...anomaly(x, row * prisms));
        return Float64Array.from(out);
      },
    });
  },

  /** Phase velocity against period, and shear velocity against depth. */
  profile(page, place, engine, changed) {
    const { periods, depths } = page.scene;
    return curves(page, place, {
      changed, along: periods, xlabel: "period (s)", log: true, curve: "Surface waves", unit: "phase velocity (km/s)", below: "Below ground",
      across: "shear velocity (km/s)", edges: depths, upright: true,
      predict: page.forward ? (x, n) => engine.predict(x.subarray(0, Math.min(n, 40) * (depths.length - 1)), Math.min(n, 40)) : null,
    });
  },

  /** Any other observation: a point of the plane, or the numbers side by side. */
  plain(page, place, engine, changed) {
    const names = page.y_names, size = names.length, seen = unpacked(page.observations);
    let y = null;
    if (size === 2) {
      const even = (k) => seen.filter((_, i) => i % 2 === k);
      const plot = new Plot(place, {
        title: "The observation", label: "the observation among simulated ones; drag it", x: span(even(0)), y: span(even(1)), xlabel: names[0], ylabel: names[1],
        draw(own) { own.points(seen, colour("quiet"), 3, 0.4); if (y) own.ring(y[0], y[1], colour("warm"), 9); },
      });
      plot.movable((px, py) => changed(Float64Array.of(px, py)), () => y);
      return { plot, place(observed) { y = observed; plot.redraw(); }, show() {} };
    }
    if (size < 3) return { place() {}, show() {} };
    return curves(page, place, { changed, along: names.map((_, j) => j + 1), xlabel: "number of the datum", curve: "The observation", unit: "", seen });
  },
};

/** A curve with points to drag, and steps of the parameters along a depth or a width. */
function curves(page, place, { changed, along, xlabel, curve, unit, below, across, edges, upright, predict, log, seen }) {
  let y = null, x = null, n = 0, fitted = new Float64Array(0), held = 0;
  const size = along.length, examples = seen || unpacked(page.observations), warm = () => colour("warm");
  const ends = log ? [along[0] * 0.9, along[size - 1] * 1.1] : edges && !upright ? [edges[0], edges[edges.length - 1]] : span(along, 0.05);
  const pairs = (values) => { const out = new Float64Array(2 * values.length); values.forEach((v, i) => { out[2 * i] = along[i % size]; out[2 * i + 1] = v; }); return out; };
  const above = new Plot(place, {
    title: curve, label: `${curve}: the observation; drag its points`, x: ends, y: span(examples, 0.15, 0.002), log, xlabel, ylabel: unit, aspect: upright ? 1 : 0.6,
    draw(own) {
      own.lines(pairs(fitted), size, colour("accent"), 1, faint(0.3));
      if (!y) return;
      own.lines(pairs(y), size, warm(), 1.5, 0.6);
      own.points(pairs(y), warm(), 7);
      own.ring(along[held], y[held], warm(), 8);
    },
  });
  element("p", { className: "note", textContent: `Drag a point, its neighbours follow.${predict ? " Blue lines are what some draws predict; where the model is right, near the points." : ""}` }, above.figure);
  above.movable((px, py, phase) => {
    if (phase === "start") held = along.reduce((best, v, i) => (Math.abs(above.px(v) - above.px(px)) < Math.abs(above.px(along[best]) - above.px(px)) ? i : best), 0);
    if (phase === "key" && Math.abs(above.px(px) - above.px(along[held])) > 1) {
      held = Math.min(Math.max(held + Math.sign(px - along[held]), 0), size - 1); // left and right choose a point
      above.redraw();
      return;
    }
    const next = y.slice(), change = py - y[held];
    // its neighbours follow, since curves are smooth
    for (let i = 0; i < size; i++) next[i] += change * Math.exp(-0.5 * ((i - held) / Math.max(size / 12, 0.4)) ** 2);
    changed(next);
  }, () => y && [along[held], y[held]]);
  const put = (observed) => { y = observed; above.redraw(); };
  if (!edges) return { plot: above, place: put, show() {} };

  const count = edges.length - 1, all = unpacked(page.parameters), top = span(all, 0.05, 0.002);
  const stairs = (values, start) => {
    const out = [];
    for (let i = 0; i < count; i++) for (const edge of [edges[i], edges[i + 1]]) out.push(...(upright ? [values[start + i], edge] : [edge, values[start + i]]));
    return out;
  };
  const lower = new Plot(place, {
    title: below, label: `${below}: draws of the posterior`, aspect: upright ? 1 : 0.6,
    x: upright ? top : [edges[0], edges[count]], y: upright ? [edges[count], 0] : [Math.max(top[1], 0.1), 0],
    xlabel: upright ? across : xlabel, ylabel: upright ? "depth (km)" : across,
    draw(own) {
      if (!x) return;
      const lines = [];
      for (let row = 0; row < Math.min(n, 300); row++) lines.push(...stairs(x, row * count));
      own.lines(Float64Array.from(lines), 2 * count, colour("accent"), 1, faint(0.12));
      const middle = Array.from({ length: count }, (_, j) => Float64Array.from({ length: n }, (_, i) => x[i * count + j]).sort()[n >> 1]);
      own.lines(Float64Array.from(stairs(middle, 0)), 2 * count, colour("ink"), 2);
    },
  });
  return {
    plot: above,
    place: put,
    async show(observed, draws, rows) {
      if (predict) fitted = await predict(draws, rows);
      x = draws; n = rows;
      above.redraw();
      lower.redraw();
    },
  };
}
