// The page of a density: data and model, x and z side by side, and rows that the reader brings.

async function densityPage(page) {
  const engine = engineOf(page), { names } = page, size = names.length, { latent } = engine;
  const data = unpacked(page.rows), n = data.length / size, conditions = page.given_names.length ? unpacked(page.given) : null;
  const given = page.given_names.length ? Float64Array.from(page.given_usual) : null;
  const at = { x: [0, Math.min(1, size - 1)], z: [0, Math.min(1, latent - 1)] }; // the columns that are shown
  const flat = size === 2 && latent === 2;
  let temperature = 1, seed = 1, draws = null, shown = "both", brushed = null, mode = "move";
  let row = data.slice(0, size), around = null; // of the marker: its row, and the rows of the small grid
  let marker = await engine.encode(row, 1, { given }), z = null; // z: of all rows, which may take longer than the first answer

  const top = section("One map, both ways",
    `Each row of the data (left) has a place in a standard normal space (right), and every place there is a row. ${
      flat ? "The straight grid on the right becomes the bent grid on the left." : "Choose which columns are shown."
    } A row has the same colour on both sides. Drag the marker, or mark rows, on either side.`);
  const bar = element("div", { className: "controls" }, top), pair = element("div", { className: "pair" }, top);

  const pick = (rows, width, [a, b], spread = false) => {
    const out = new Float64Array((2 * rows.length) / width);
    for (let i = 0; 2 * i < out.length; i++) {
      out[2 * i] = rows[i * width + a];
      out[2 * i + 1] = a === b ? (spread ? jitter(i) : 0) : rows[i * width + b];
    }
    return out;
  };
  const jitter = (i) => ((i * 0.6180339887) % 1) * 1.6 - 0.8; // a single column is spread out, so that points are seen
  const hues = () => {
    const xy = pick(data, size, at.x), [mx, my] = [0, 1].map((k) => xy.filter((_, i) => i % 2 === k).reduce((s, v) => s + v, 0) / n);
    const [sx, sy] = [0, 1].map((k) => { const [l, h] = span(xy.filter((_, i) => i % 2 === k), 0); return h - l || 1; });
    return Array.from({ length: n }, (_, i) => Math.round(((Math.atan2((xy[2 * i + 1] - my) / sy, (xy[2 * i] - mx) / sx) / Math.PI + 1) * 180) / 15) * 15);
  };
  let hue = hues();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const shade = (i) => {
    if (brushed && !brushed[i]) return colour("rule");
    return `hsl(${hue[i]} 60% ${dark.matches ? 65 : 42}%)`;
  };

  // the grid: straight lines of the latent plane, and their images
  const grid = flat ? straightGrid(3, 13, 61) : null;
  let bent = null;
  const patch = straightGrid(0.5, 5, 41);

  const left = new Plot(pair, {
    title: "Data, x", label: "rows of the data and of the model", xlabel: names[0], ylabel: names[at.x[1]], x: [0, 1], y: [0, 1],
    draw(plot) {
      if (bent && shown !== "none") plot.lines(bent, 61, colour("quiet"), 1, 0.35);
      if (shown !== "draws") plot.points(pick(data, size, at.x, true), shade, 3, 0.75);
      if (shown !== "data" && draws) plot.points(pick(draws, size, at.x, true), colour("accent"), 3, 0.5);
      if (around) plot.lines(pick(around, size, at.x), 41, colour("warm"), 1.5, 0.9);
      const own = pick(row, size, at.x);
      plot.ring(own[0], own[1], colour("warm"));
      if (mode === "brush" && plot === drawn.plot) frameOf(plot);
    },
  });
  const right = new Plot(pair, {
    title: "Latents, z", label: "the same rows in latent space", xlabel: "z1", ylabel: latent > 1 ? "z2" : "", x: [-4, 4], y: [-4, 4],
    draw(plot) {
      if (grid && shown !== "none") plot.lines(grid, 61, colour("quiet"), 1, 0.35);
      if (z) plot.points(pick(z, latent, at.z, true), shade, 3, 0.75);
      if (flat) plot.lines(moved(patch), 41, colour("warm"), 1.5, 0.9);
      plot.ring(marker[at.z[0]], at.z[0] === at.z[1] ? 0 : marker[at.z[1]], colour("warm"));
      if (mode === "brush" && plot === drawn.plot) frameOf(plot);
    },
  });

  element("p", { className: "note", textContent: "In blue: draws of the model. Where it is right, they lie where the data do." }, left.figure);
  element("p", { className: "note", textContent: "Where the model is right, all rows together are one round cloud, N(0, I)." }, right.figure);
  const moved = (lines) => lines.map((v, i) => v + marker[i % 2]);
  const redraw = () => { left.redraw(); right.redraw(); };

  // -- the marker, and the brush ----------------------------------------------------------------------------------------
  const drawn = { plot: null, from: null, to: null };
  function frameOf(plot) {
    if (!drawn.from) return;
    const [a, b] = [drawn.from, drawn.to];
    plot.lines(Float64Array.of(a[0], a[1], b[0], a[1], b[0], b[1], a[0], b[1], a[0], a[1]), 5, colour("ink"), 1.5);
  }
  function pointer(plot, rows, width, columns, move) {
    return (x, y, phase, event) => {
      if (mode === "move") { move(x, y); return; }
      if (!rows()) return;
      if (phase === "key") byKey(plot, x, y, event);
      else {
        if (phase === "start") Object.assign(drawn, { plot, from: [x, y] });
        drawn.to = [x, y];
      }
      const [xs, ys] = [0, 1].map((k) => (drawn.from ? [drawn.from[k], drawn.to[k]].sort((a, b) => a - b) : [1, 0]));
      const points = pick(rows(), width, columns, true);
      brushed = Array.from({ length: n }, (_, i) => points[2 * i] >= xs[0] && points[2 * i] <= xs[1] && points[2 * i + 1] >= ys[0] && points[2 * i + 1] <= ys[1]);
      if (phase !== "start" && phase !== "move" && !brushed.some(Boolean)) brushed = null;
      if (phase === "end") drawn.from = null;
      note();
      redraw();
    };
  }
  /** Move the frame to (x, y) by arrow keys, resize it by + and -, remove it by Escape. */
  function byKey(plot, x, y, event) {
    if (event.key === "Escape") { drawn.from = null; return; }
    const whole = [plot.x, plot.y].map(([a, b]) => Math.abs(b - a)), mine = drawn.plot === plot && drawn.from;
    const half = mine ? [0, 1].map((k) => Math.abs(drawn.to[k] - drawn.from[k]) / 2) : whole.map((side) => side / 8);
    const factor = { "+": 1.25, "-": 0.8 }[event.key] || 1;
    half.forEach((side, k) => { half[k] = Math.min(side * factor, whole[k]); });
    Object.assign(drawn, { plot, from: [x - half[0], y - half[1]], to: [x + half[0], y + half[1]] });
  }
  /** Where arrow keys go on from: the middle of the frame, or the marker. */
  const held = (plot, place) => (mode === "brush" && drawn.plot === plot && drawn.from ? [0, 1].map((k) => (drawn.from[k] + drawn.to[k]) / 2) : place);
  const ofFrame = (event) => mode === "brush" && ["+", "-", "Escape"].includes(event.key);
  const setMarker = (place) => { marker = place.map((v) => Math.min(Math.max(v, -8), 8)); right.redraw(); return tell(); };
  const fromRow = latest(async (wanted) => {
    const place = await engine.encode(wanted, 1, { given });
    if (place.every(Number.isFinite)) await setMarker(place);
  });
  function connect() {
    right.movable((...event) => pointer(right, () => z, latent, at.z, (x, y) => {
      const place = marker.slice();
      place[at.z[0]] = x;
      if (at.z[0] !== at.z[1]) place[at.z[1]] = y;
      setMarker(place);
    })(...event), () => held(right, [marker[at.z[0]], marker[at.z[1]]]), ofFrame);
    left.movable((...event) => pointer(left, () => data, size, at.x, (x, y) => {
      const wanted = row.slice();
      wanted[at.x[0]] = x;
      if (at.x[0] !== at.x[1]) wanted[at.x[1]] = y;
      fromRow(wanted);
    })(...event), () => held(left, [row[at.x[0]], row[at.x[1]]]), ofFrame);
  }

  // -- controls -----------------------------------------------------------------------------------------------------------
  choice("Show", bar, ["data and draws", "data", "draws"], 0, (i) => { shown = ["both", "data", "draws"][i]; redraw(); });
  choice("Drag to", bar, ["move the marker", "mark rows"], 0, (i) => { mode = ["move", "brush"][i]; note(); redraw(); });
  slider("Temperature (1: as fitted)", bar, { low: 0, high: 1.5, value: 1, step: 0.05 }, (v) => { temperature = v; draw(); });
  button("New draws", bar, () => { seed++; draw(); });
  if (size > 2) {
    ["across", "up"].forEach((way, k) => choice(`x ${way}`, bar, names, at.x[k], (j) => { at.x[k] = j; reframe(); }));
  }
  if (latent > 2) {
    const zs = Array.from({ length: latent }, (_, j) => `z${j + 1}`);
    ["across", "up"].forEach((way, k) => choice(`z ${way}`, bar, zs, at.z[k], (j) => { at.z[k] = j; reframe(); }));
  }
  page.given_names.forEach((name, j) => {
    const own = conditions.filter((_, i) => i % page.given_names.length === j), [low, high] = span(own, 0.02);
    slider(`given ${name}`, bar, { low, high, value: given[j] }, (v) => { given[j] = v; draw(); bend(); tell(); });
  });

  const line = element("p", { className: "readout" }, top), marked = element("p", { className: "readout" }, top);
  line.setAttribute("aria-live", "polite");
  const judged = verdict(top);
  meaning(top, "rows that are at least as unusual as this one", page.alpha, engine.scores.length);
  caution(top);
  const tell = latest(async () => {
    const count = flat ? patch.length / 2 : 0, places = new Float64Array((count + 1) * latent);
    if (flat) places.set(moved(patch));
    places.set(marker, count * latent);
    const rows = await engine.decode(places, count + 1, { given });
    row = rows.slice(count * size);
    if (flat) around = rows.subarray(0, count * size);
    redraw();
    const [log] = await engine.logProb(row, 1, { given });
    const parts = names.slice(0, 8).map((name, j) => `${clipped(name, 20)} = ${short(row[j], 4)}`);
    line.textContent = `At the marker: ${parts.join(", ")}${size > 8 ? ", …" : ""}; log p = ${short(log, 4)}`;
    judged(engine.pValue(log), page.alpha, "A usual row", "An unusual row", "No p-value: no rows were held out.");
  });
  function note() {
    const count = brushed ? brushed.filter(Boolean).length : 0;
    marked.textContent = count ? `${count} of ${n} rows are marked, in both spaces.`
      : mode === "brush" ? "Draw a frame around rows on either side; or by keys: arrows move it, + and − resize it, Escape removes it." : "";
  }
  const draw = latest(async () => {
    draws = await engine.sample(Math.min(n, 1000), { seed, temperature, given });
    redraw();
  });
  const bend = latest(async () => { if (grid) bent = pick(await engine.decode(grid, grid.length / 2, { given }), size, at.x); redraw(); });
  function reframe() {
    const xy = pick(data, size, at.x, true), even = (k) => xy.filter((_, i) => i % 2 === k);
    Object.assign(left, { x: span(even(0), 0.12, 0.002), y: at.x[0] === at.x[1] ? [-3, 3] : span(even(1), 0.12, 0.002), xlabel: names[at.x[0]], ylabel: at.x[0] === at.x[1] ? "" : names[at.x[1]] });
    Object.assign(right, { x: [-4, 4], y: [-4, 4], xlabel: `z${at.z[0] + 1}`, ylabel: at.z[0] === at.z[1] ? "" : `z${at.z[1] + 1}` });
    hue = hues();
    redraw();
  }
  reframe();
  connect();
  await tell();
  await painted(); // the first answer is seen before all else is computed
  z = await engine.encode(data, n, { given: conditions, rows: n });
  redraw();
  await painted();
  await bend();
  await painted();
  await draw();
  await painted();

  // -- the reader's rows ---------------------------------------------------------------------------------------------------
  const own = section("Your rows", "Each row gets its log density, a p-value, and the columns to blame: how many nats likelier it would be with another value of that column alone.");
  const all = [...names, ...page.given_names], tried = triedValues(data, size);
  const example = [all.join(","), ...[0, 1].map((i) => [...data.subarray(i * size, (i + 1) * size), ...(conditions ? conditions.subarray(i * page.given_names.length, (i + 1) * page.given_names.length) : [])].map((v) => +v.toPrecision(5)).join(","))];
  const { written } = page; // a table whose categories are words is read in Python
  await dropBox(own, written ? written.names : all, written ? written.example : example.join("\n"), async (values, rows, place) => {
    const split = shared(values, rows, [size, page.given_names.length]), [x, known] = split;
    const log = await engine.logProb(x, rows, { given: known, rows }), p = Array.from(log, (v) => engine.pValue(v));
    const order = Array.from(log.keys()).sort((a, b) => log[a] - log[b]).slice(0, MOST_EXPLAINED);
    const flagged = p.filter((v) => v !== null && v < page.alpha).length;
    element("p", { className: `verdict ${flagged ? "bad" : "good"}`, textContent: p[0] === null ? "No p-values: no rows were held out." : `${flagged} of ${rows} rows are flagged (p < ${short(page.alpha)}).` }, place);
    const lines = [];
    for (const i of order) {
      const condition = known.length ? known.subarray(i * page.given_names.length, (i + 1) * page.given_names.length) : null;
      const gains = await blame(x.subarray(i * size, (i + 1) * size), tried, (candidates, count) => engine.logProb(candidates, count, { given: condition }));
      lines.push([i + 1, log[i], p[i] === null ? "–" : p[i], blamed(gains, names)]);
    }
    table([["row", "log p", "p-value", "columns to blame"], ...lines], place, (i) => (p[order[i]] !== null && p[order[i]] < page.alpha ? "bad" : ""));
  }, written ? (text) => ask("read_rows", { text }) : undefined);
  return engine;
}

/** Straight lines of a square, `count` each way, with `length` points each. */
function straightGrid(half, count, length) {
  const out = [];
  for (const across of [true, false]) {
    for (let i = 0; i < count; i++) {
      for (let t = 0; t < length; t++) {
        const c = (i / (count - 1)) * 2 * half - half, v = (t / (length - 1)) * 2 * half - half;
        out.push(...(across ? [v, c] : [c, v]));
      }
    }
  }
  return Float64Array.from(out);
}
