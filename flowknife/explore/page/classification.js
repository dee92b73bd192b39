// The page of a classifier of rows: probabilities at the pointer, draws of every class, rows explained.

async function classificationPage(page) {
  const engine = engineOf(page), { names, classes } = page, size = names.length, { latent, carried } = engine;
  const data = unpacked(page.rows), labels = unpacked(page.labels), n = labels.length;
  const at = { x: [0, Math.min(1, size - 1)], z: [0, Math.min(1, latent - 1)] };
  const shades = (k) => (k < 0 ? colour("quiet") : colour(`c${k % 10}`));
  let row = data.slice(0, size), z = null, place = null, seen = classes.map(() => true), draws = null, shown = "data", seed = 1, temperature = 1, map = null;
  const flat = size === 2;

  const top = section("Probabilities at the marker", "Drag the marker through the data. The bars are the calibrated probabilities of each class there; the p-value asks whether such a row belongs to any of them.");
  const bar = element("div", { className: "controls" }, top);
  const set = bars(top, classes, shades), judged = verdict(top), line = element("p", { className: "readout" }, top);
  meaning(top, "rows that fit their classes no better than this one", page.alpha, engine.scores.length);
  caution(top);
  const pair = element("div", { className: "pair" }, top);

  const pick = (rows, width, [a, b]) => {
    const out = new Float64Array((2 * rows.length) / width);
    for (let i = 0; 2 * i < out.length; i++) { out[2 * i] = rows[i * width + a]; out[2 * i + 1] = a === b ? ((i * 0.618) % 1) - 0.5 : rows[i * width + b]; }
    return out;
  };
  const left = new Plot(pair, {
    title: "Rows, x", label: "rows by class; drag the marker", x: [0, 1], y: [0, 1],
    draw(plot) {
      if (map && flat) map.draw(plot);
      if (shown !== "draws") plot.points(pick(data, size, at.x), (i) => (labels[i] < 0 || seen[labels[i]] ? shades(labels[i]) : null), 3, 0.8);
      if (shown !== "data" && draws) draws.forEach((own, k) => { if (seen[k]) plot.points(pick(own, size, at.x), shades(k), 3, 0.8); });
      plot.ring(row[at.x[0]], at.x[0] === at.x[1] ? 0 : row[at.x[1]], colour("ink"), 9);
    },
  });
  const right = new Plot(pair, {
    title: "Right end: classes and latent", label: "the same rows at the right end, by class", x: [0, 1], y: [0, 1],
    draw(plot) {
      if (!z) return;
      plot.points(pick(z, latent, at.z), (i) => (labels[i] < 0 || seen[labels[i]] ? shades(labels[i]) : null), 3, 0.8);
      plot.ring(place[at.z[0]], at.z[0] === at.z[1] ? 0 : place[at.z[1]], colour("ink"), 9);
    },
  });
  const redraw = () => { left.redraw(); right.redraw(); };
  left.movable((x, y) => {
    row = row.slice();
    row[at.x[0]] = x;
    if (at.x[0] !== at.x[1]) row[at.x[1]] = y;
    left.redraw();
    tell();
  }, () => [row[at.x[0]], row[at.x[1]]]);

  const zs = Array.from({ length: latent }, (_, j) => (j < carried ? `y${j + 1}` : `z${j + 1 - carried}`));
  choice("Show", bar, ["data", "draws", "data and draws"], 0, (i) => { shown = ["data", "draws", "both"][i]; if (shown !== "data" && !draws) draw(); redraw(); });
  slider("Temperature (1: as fitted)", bar, { low: 0, high: 1.5, value: 1, step: 0.05 }, (v) => { temperature = v; draw(); });
  button("New draws", bar, () => { seed++; draw(); });
  if (size > 2) ["across", "up"].forEach((way, k) => choice(`x ${way}`, bar, names, at.x[k], (j) => { at.x[k] = j; reframe(); }));
  if (latent > 2) ["across", "up"].forEach((way, k) => choice(`right end ${way}`, bar, zs, at.z[k], (j) => { at.z[k] = j; reframe(); }));
  const legend = element("div", { className: "controls legend" }, top);
  classes.slice(0, 20).forEach((name, k) => {
    const box = checkbox(clipped(name, 24), legend, true, (on) => { seen[k] = on; redraw(); });
    box.style.accentColor = shades(k);
  });
  if (flat) element("p", { className: "note", textContent: `Colours of the plane: the likeliest class, stronger where it is surer${engine.scores.length ? `, and faint where a row would belong to no class (p < ${short(page.alpha)})` : ""}.` }, top);

  const draw = latest(async () => {
    const found = [], count = Math.ceil(1000 / classes.length);
    for (let k = 0; k < classes.length; k++) found.push(await engine.sample(count, { seed: seed * 100 + k, temperature, label: k }));
    draws = found;
    redraw();
  });
  const tell = latest(async () => {
    const own = row, [joint] = await engine.joint(own, 1);
    place = await engine.encode(own, 1);
    const [p] = engine.probabilitiesOf([joint]), log = logSumExp(joint);
    right.redraw();
    set(p, (k) => shareText(p[k]));
    line.textContent = `${names.slice(0, 8).map((name, j) => `${clipped(name, 20)} = ${short(own[j], 4)}`).join(", ")}; log p = ${short(log, 4)}`;
    judged(engine.pValue(log), page.alpha, "Such a row belongs to a class", "Such a row belongs to no class: its probabilities mean nothing", "Whether it belongs to any class is not known: no rows were held out.");
  });
  async function reframe() {
    const range = (rows, width, j) => span(rows.filter((_, i) => i % width === j), 0.15, 0.002);
    const ends = (rows, width, [a, b]) => ({ x: range(rows, width, a), y: a === b ? [-1, 1] : range(rows, width, b) });
    Object.assign(left, ends(data, size, at.x), { xlabel: names[at.x[0]], ylabel: at.x[0] === at.x[1] ? "" : names[at.x[1]] });
    if (z) Object.assign(right, ends(z, latent, at.z), { xlabel: zs[at.z[0]], ylabel: at.z[0] === at.z[1] ? "" : zs[at.z[1]] });
    redraw();
    if (!z || !flat || at.x[0] === at.x[1]) return;
    await painted();
    map = await probabilityMap(engine, left, at.x, shades, 72, page.alpha);
    redraw();
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (map) map.paint(); redraw(); tell(); });
  await reframe();
  await tell();
  await painted(); // the first answer is seen before all else is computed
  z = await engine.encode(data, n);
  await reframe();
  await painted();

  const own = section("Your rows, explained", "The likeliest class of each row, whether it belongs to any, and the columns to blame where it does not: how many nats likelier it would be with another value of that column alone.");
  const tried = triedValues(data, size);
  const example = [names.join(","), ...[0, 1].map((i) => Array.from(data.subarray(i * size, (i + 1) * size), (v) => +v.toPrecision(5)).join(","))].join("\n");
  await dropBox(own, names, example, async (values, rows, place) => {
    const joint = await engine.joint(values, rows), p = engine.probabilitiesOf(joint), log = joint.map((each) => logSumExp(each));
    const odd = log.map((v) => engine.pValue(v)), order = log.map((_, i) => i).sort((a, b) => log[a] - log[b]).slice(0, MOST_EXPLAINED);
    const flagged = odd.filter((v) => v !== null && v < page.alpha).length;
    element("p", { className: `verdict ${flagged ? "bad" : "good"}`, textContent: odd[0] === null ? "No p-values: no rows were held out." : flagged ? `${flagged} of ${rows} rows belong to no class (p < ${short(page.alpha)}).` : `Each of the ${rows} rows can belong to a class.` }, place);
    const most = order.map((i) => p[i].indexOf(Math.max(...p[i])));
    const reasons = [];
    for (const i of order) reasons.push(blamed(await blame(values.subarray(i * size, (i + 1) * size), tried, (candidates, count) => engine.logProb(candidates, count)), names));
    table([["row", "class", "probability", "p-value", "columns to blame"],
      ...order.map((i, k) => [i + 1, classes[most[k]], shareText(p[i][most[k]]), odd[i] === null ? "–" : odd[i], reasons[k]])],
    place, (k) => (odd[order[k]] !== null && odd[order[k]] < page.alpha ? "bad" : ""));
  });
  return engine;
}

/** The classes as colours of the plane: stronger where one is surer, faint where a row would belong to none. */
async function probabilityMap(engine, plot, [a, b], shades, side, alpha) {
  const canvas = element("canvas", { width: side, height: side }), context = canvas.getContext("2d");
  const [x0, x1] = plot.x, [y0, y1] = plot.y, rows = new Float64Array(2 * side * side);
  for (let i = 0; i < side; i++) for (let j = 0; j < side; j++) {
    rows[2 * (i * side + j) + a] = x0 + ((x1 - x0) * (j + 0.5)) / side;
    rows[2 * (i * side + j) + b] = y1 - ((y1 - y0) * (i + 0.5)) / side;
  }
  const joint = await engine.joint(rows, side * side), p = engine.probabilitiesOf(joint);
  const strength = joint.map((each) => ((engine.pValue(logSumExp(each)) ?? 1) < alpha ? 0.1 : 0.4));
  function paint() {
    p.forEach((each, i) => {
      const k = each.indexOf(Math.max(...each));
      context.clearRect(i % side, (i / side) | 0, 1, 1);
      context.globalAlpha = strength[i] * Math.max(0, (each[k] - 1 / each.length) / (1 - 1 / each.length));
      context.fillStyle = shades(k);
      context.fillRect(i % side, (i / side) | 0, 1, 1);
    });
  }
  paint();
  return { paint, draw: (own) => own.context.drawImage(canvas, own.px(x0), own.py(y1), own.px(x1) - own.px(x0), own.py(y0) - own.py(y1)) };
}
