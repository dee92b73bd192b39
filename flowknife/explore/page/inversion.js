// The page of an inverse problem: drag the observation, and the posterior follows.

const DRAWN = 300;

async function inversionPage(page) {
  const engine = engineOf(page), names = page.names, size = names.length;
  const examples = unpacked(page.observations), length = page.y_names.length, all = unpacked(page.parameters);
  let seed = 1, temperature = 1, x = null;
  const exampleAt = (i) => examples.slice(i * length, (i + 1) * length);
  // the most usual of some, so that the first one is within what the simulator makes
  let example = Array.from({ length: Math.min(20, examples.length / length) }, (_, i) => i)
    .reduce((best, i) => ((engine.pValue(exampleAt(i)) ?? 0) > (engine.pValue(exampleAt(best)) ?? 0) ? i : best), 0);
  let y = exampleAt(example);
  const top = section("Drag the observation",
    `What you move, in orange, is the observation; what follows, in blue, are ${DRAWN} draws from the posterior: all the parameters that explain it.`);
  const bar = element("div", { className: "controls" }, top);
  const possible = verdict(top);
  meaning(top, "simulations whose observation is at least as unusual as this one", page.alpha, engine.detector);
  caution(top);
  const pair = element("div", { className: "pair" }, top);
  const scene = SCENES[page.scene.kind](page, pair, engine, (observed) => { setY(observed); });

  function setY(observed) {
    y = observed;
    scene.place(y); // at once, whenever the draws follow
    return update();
  }

  const columns = size <= 6 ? names.map((_, j) => j) : Array.from({ length: 6 }, (_, i) => Math.round((i * (size - 1)) / 5));
  const ranges = columns.map((j) => span(all.filter((_, i) => i % size === j), 0.05, 0.002));
  const corner = new Corner(pair, columns.map((j) => (page.units[j] ? `${names[j]} (${page.units[j]})` : names[j])), ranges);

  const sliders = [];
  let waiting;
  const update = latest(async (cornerToo = false) => {
    const observed = y;
    x = await engine.sample(DRAWN, { y: observed, seed, temperature });
    await scene.show(observed, x, DRAWN);
    clearTimeout(waiting);
    if (cornerToo) details();
    else waiting = setTimeout(details, 150); // what the eye does not follow may wait until the hand rests
    possible(engine.pValue(observed), page.alpha, "The simulator could have made this observation",
      "The simulator hardly ever makes such an observation: do not trust this posterior",
      "Whether the simulator could have made this observation is not known: no pairs were held out.");
  });
  function details() {
    corner.show(x, DRAWN, size, columns);
    sliders.forEach((own, j) => own.set(y[j]));
    summary();
  }

  button("Another example", bar, () => {
    example = (example + 1) % (examples.length / length);
    setY(exampleAt(example));
  });
  button("New draws", bar, () => { seed++; update(true); });
  slider("Temperature (1: as fitted)", bar, { low: 0, high: 1.5, value: 1, step: 0.05 }, (v) => { temperature = v; update(); });

  const few = length <= 24;
  const box = element("details", { className: "more", open: page.scene.kind === "plain" && length < 3 }, top);
  element("summary", { textContent: "The observation as numbers" }, box);
  const fields = element("div", { className: "controls" }, box);
  if (few) {
    page.y_names.forEach((name, j) => {
      const [low, high] = span(examples.filter((_, i) => i % length === j), 0.25);
      sliders.push(slider(page.y_units[j] ? `${name} (${page.y_units[j]})` : name, fields, { low, high, value: y[j] }, (v) => { const next = y.slice(); next[j] = v; setY(next); }));
    });
  }
  const numbers = section("The posterior in numbers", "Median and central 90 % interval of each parameter, and its width as a share of that before the observation: 100 % means that nothing was learnt.");
  const place = element("div", {}, numbers);
  const prior = names.map((_, j) => { const own = all.filter((_, i) => i % size === j).sort(); return own[Math.floor(0.95 * (own.length - 1))] - own[Math.floor(0.05 * (own.length - 1))]; });
  function summary() {
    const rows = names.map((name, j) => {
      const own = Float64Array.from({ length: DRAWN }, (_, i) => x[i * size + j]).sort(), at = (q) => own[Math.round(q * (DRAWN - 1))];
      const share = prior[j] ? (at(0.95) - at(0.05)) / prior[j] : 1;
      return [page.units[j] ? `${name} (${page.units[j]})` : name, at(0.5), at(0.05), at(0.95), `${Math.round(100 * share)} %`];
    });
    place.replaceChildren();
    table([["parameter", "median", "5 %", "95 %", "of the prior's width"], ...rows], place);
  }
  scene.place(y);
  await update(true);
  return Object.assign(engine, { update, setY });
}
