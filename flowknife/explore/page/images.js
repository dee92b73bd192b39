// The page of a model of images, answered live: the cloud of latents, one image judged and changed, new ones, the reader's.

const SHOWN = 8; // images of a strip

async function imagesPage(page) {
  const { shape, levels, classes } = page, size = shape.reduce((a, b) => a * b, 1), engine = engineOf(page);
  const codes = unpacked(page.codes), places = unpacked(page.places), conditional = classes.length > 0 && !page.classifies;
  const directions = unpacked(page.directions), kind = page.held_out ? "Held-out" : "Training";
  const items = imagesOf(unpacked(page.images), size).map((pixels, i) => makeItem(pixels, `${kind} image ${i + 1}`, codes[i],
    Object.fromEntries(Object.entries(places).map(([name, xy]) => [name, [xy[2 * i], xy[2 * i + 1]]]))));
  let chosen = items[0], level = Object.keys(places)[0], seed = 1;
  let first = null; // what is first said of an image: the checks wait for it
  const refresh = []; // what follows the chosen image

  function makeItem(pixels, name, code = -1, where = null, z = null) {
    let picture = null;
    return {
      pixels, name, code, where, score: null, map: null,
      canvas: () => (picture ??= imageCanvas(pixels, shape, null, name)),
      /** Its latent, computed once. */
      latent: () => (z ??= engine.encode(pixels, 1, given(code)).catch((error) => { z = null; throw error; })),
    };
  }
  function given(code) { return conditional ? { given: Math.max(code, 0) } : {}; }
  const judge = async (some) => {
    const found = await ask("score", { x: joinedPixels(some), n: some.length, ...(conditional ? { given: Int32Array.from(some, (item) => Math.max(item.code, 0)) } : {}) });
    some.forEach((item, i) => { item.score = scoreOf(found, i); });
  };
  const scoreOf = (found, i) => ({
    p: found.p ? found.p[i] : null, score: found.score[i], bits: found.bits[i],
    probability: found.probability ? found.probability.subarray(i * classes.length, (i + 1) * classes.length) : null,
  });
  const joinedPixels = (some) => { const all = new Uint8Array(some.length * size); some.forEach((item, i) => all.set(item.pixels, i * size)); return all; };
  const flagged = (item) => item.score && item.score.p !== null && item.score.p < page.alpha;
  const shade = (item) => (flagged(item) ? colour("bad") : item.code >= 0 && classes.length ? colour(`c${item.code % 10}`) : colour(item.own ? "warm" : "accent"));

  // -- the cloud, and the chosen image -------------------------------------------------------------------------------
  const top = section("Images as points", `Each point is an image: its latent, on the ${page.classifies && classes.length > 2 ? "plane that tells the classes apart" : "two axes along which latents vary most"}. Point at one to see it, click to choose it, drag and scroll to move and zoom.${
    classes.length ? " Colours are classes." : ""}`);
  const bar = element("div", { className: "controls" }, top), pair = element("div", { className: "pair" }, top);
  const cloud = new ImageCloud(pair, {
    title: "Latents", label: "latents of images", items, shade, xy: (item) => item.where && item.where[level], chosen: (item) => item === chosen, also: () => chosen, pick: (item) => choose(item),
  });
  const names = Object.keys(places);
  if (names.length > 1) choice("Latents of", bar, names.map((name) => (name === "all" ? "all levels" : name)), 0, (i) => { level = names[i]; cloud.frame(); });
  button("Zoom in", bar, () => cloud.zoom(0.7));
  button("Zoom out", bar, () => cloud.zoom(1.4));
  button("Whole cloud", bar, () => cloud.frame());
  if (classes.length) {
    const legend = element("p", { className: "legend" }, top);
    classes.slice(0, 20).forEach((name, k) => { const own = element("span", {}, legend); element("i", {}, own).style.background = colour(`c${k % 10}`); own.append(clipped(name, 24)); });
  }

  const card = element("figure", { className: "plot card" }, pair), title = element("h3", {}, card), faces = element("div", { className: "faces" }, card);
  const face = imageCanvas(null, shape, faces, "the chosen image"), heat = page.classifies ? null : imageCanvas(null, shape, faces, "its anomaly map");
  const judged = verdict(card), line = element("p", { className: "readout" }, card);
  meaning(card, `images ${page.classifies ? "that fit their classes no better than this one" : "that are at least as unusual as this one"}`, page.alpha, page.held_out);
  caution(card);
  if (heat) element("p", { className: "note", textContent: "Anomaly map: orange where the image is less likely than held-out ones are there, blue where it is more likely." }, card);
  const likely = page.classifies ? bars(card, classes.slice(0, 20), (k) => colour(`c${k % 10}`)) : null;
  const marks = element("div", { className: "controls" }, card), groups = { with: [], without: [] };
  for (const group of ["with", "without"]) button(`Mark as “${group}”`, marks, () => mark(group));
  const marked = element("p", { className: "note", textContent: "Mark images with something, and images without it: the difference of their mean latents becomes a direction below." }, card);
  async function mark(group) {
    for (const name of ["with", "without"]) groups[name] = groups[name].filter((item) => item !== chosen);
    groups[group].push(chosen);
    marked.textContent = `${groups.with.length} with, ${groups.without.length} without.`;
    if (!groups.with.length || !groups.without.length) return;
    const means = [];
    for (const name of ["with", "without"]) {
      const latents = await Promise.all(groups[name].map((item) => item.latent())), mean = new Float32Array(size);
      for (const z of latents) for (let j = 0; j < size; j++) mean[j] += z[j] / latents.length;
      means.push(mean);
    }
    setAttribute(means[0].map((v, j) => v - means[1][j]));
  }

  const judgeChosen = latest(async (item) => {
    if (item !== chosen) return;
    if (!item.score) { waiting("Its p-value is being computed."); await judge([item]); }
    if (item !== chosen) return;
    const { p, bits, probability } = item.score;
    judged(p, page.alpha, page.classifies ? "Such an image belongs to a class" : "A usual image for this model",
      page.classifies ? "Such an image belongs to no class: its probabilities mean nothing" : "An anomalous image for this model",
      "No p-value: no images were held out.");
    line.textContent = `${short(bits, 3)} bits per dimension.`;
    if (likely) likely(Array.from(probability), (k) => shareText(probability[k]));
    cloud.plot.redraw();
    if (heat && !item.map) item.map = await ask("anomaly_map", { x: item.pixels, n: 1, ...given(item.code) });
    if (item === chosen && heat) paintMap(heat, item.map, item.pixels, shape);
  });
  /** Where an image that is not of the run lies in the cloud. */
  async function placeOf(item) {
    item.where = await ask("places", { z: await item.latent(), n: 1 });
    cloud.plot.redraw();
  }
  function waiting(words) { line.textContent = words; judged(null, 1, "", "", "…"); }
  function choose(item, seen = false) {
    chosen = item;
    title.textContent = `${item.name}${item.code >= 0 && classes.length ? `, ${classes[item.code]}` : ""}`;
    paintPixels(face, item.pixels, shape);
    if (heat) { if (item.map) paintMap(heat, item.map, item.pixels, shape); else paintPixels(heat, item.pixels.map((v) => v / 2 + 64), shape); }
    cloud.plot.redraw();
    if (seen) card.scrollIntoView({ block: "center" });
    if (!item.where) placeOf(item);
    const told = judgeChosen(item);
    first ??= told;
    return Promise.all(refresh.map((follow) => follow()));
  }

  const gallery = page.folder ? folderGallery(page, { shape, makeItem, choose, flagged, scoreOf }) : null;

  // -- change it ---------------------------------------------------------------------------------------------------------
  const change = section("Change the chosen image", page.classifies ? "Move it in latent space towards the mean of a class."
    : `Move it in latent space along the directions in which images vary most, in standard deviations; or draw one level of its latent again and keep the others.${levels.length > 1 ? ` ${levels[0][0]} is the coarsest level: shape and light; ${levels[levels.length - 1][0]} holds the finest detail.` : ""}`);
  const changed = element("div", { className: "pair" }, change), left = element("figure", { className: "plot card" }, changed);
  element("h3", { textContent: "Changed" }, left);
  const result = imageCanvas(null, shape, element("div", { className: "faces" }, left), "the changed image"), took = element("p", { className: "note" }, left);
  const side = element("div", {}, changed), sliders = element("div", { className: "controls" }, side);
  const amounts = directions.map(() => 0), heat2 = levels.map(() => 1);
  let other = -1, last = null;
  const stepOf = (name) => levels.find(([own]) => own === name) || ["", 0, size];
  const apply = latest(async () => {
    const start = performance.now(), item = chosen, z = Float32Array.from(await item.latent());
    levels.forEach(([, from, to], i) => { for (let j = from; j < to; j++) z[j] *= heat2[i]; });
    directions.forEach(({ level: name, step }, k) => { const [, from] = stepOf(name); if (amounts[k]) step.forEach((v, j) => { z[from + j] += amounts[k] * v; }); });
    const pixels = await engine.decode(z, 1, given(other >= 0 ? other : item.code));
    last = { pixels, z };
    paintPixels(result, pixels, shape);
    took.textContent = `computed in ${Math.round(performance.now() - start)} ms`;
  });
  const movers = directions.map(({ name }, k) => slider(name, sliders, page.classifies ? { low: -1, high: 2, value: 0, step: 0.05 } : { low: -3, high: 3, value: 0, step: 0.1 }, (v) => { amounts[k] = v; apply(); }));
  let attribute = null; // of the images that the reader marked
  function setAttribute(step) {
    if (!attribute) {
      attribute = { level: "", name: "“with”" };
      directions.push(attribute);
      amounts.push(0);
      const k = directions.length - 1, own = slider("towards “with”", sliders, { low: -2, high: 2, value: 0, step: 0.05 }, (v) => { amounts[k] = v; apply(); });
      movers.push(own);
      sliders.prepend(sliders.lastChild);
    }
    attribute.step = step;
    apply();
  }
  const scales = levels.map(([name], i) => slider(`scale of ${name}`, sliders, { low: 0, high: 1.5, value: 1, step: 0.05 }, (v) => { heat2[i] = v; apply(); }));
  if (conditional) choice("Given class", sliders, ["its own", ...classes], 0, (i) => { other = i - 1; apply(); });
  const actions = element("div", { className: "controls" }, side);
  button("As it was", actions, () => { movers.forEach((own, k) => { own.set(0); amounts[k] = 0; }); scales.forEach((own, i) => { own.set(1); heat2[i] = 1; }); apply(); });
  button("Choose the changed image", actions, () => { if (last) choose(makeItem(last.pixels, "A changed image", chosen.code, null, Promise.resolve(last.z))); });
  refresh.push(apply);

  let which = 0;
  const again = element("div", { className: "controls" }, side), variants = strip(side, shape, "redrawn image");
  choice("Level to redraw", again, levels.map(([name], i) => `${name}${i || page.classifies ? "" : ", the coarsest"}`), 0, (i) => { which = i; });
  button("Redraw it", again, () => redraw());
  const redraw = latest(async () => {
    const item = chosen, [, from, to] = levels[which], random = new Random(seed++), base = await item.latent(), z = new Float32Array(SHOWN * size);
    for (let k = 0; k < SHOWN; k++) { z.set(base, k * size); for (let j = from; j < to; j++) z[k * size + j] = random.normal(); }
    const found = imagesOf(await engine.decode(z, SHOWN, given(item.code)), size);
    variants.show(found.map((pixels, k) => ({ pixels, act: () => choose(makeItem(pixels, "A redrawn image", item.code, null, Promise.resolve(z.slice(k * size, (k + 1) * size)))) })));
  });

  // -- between two -------------------------------------------------------------------------------------------------------
  const path = section("From one image to another", "Each level of the latent turns evenly from the first to the second. Choose an image above, then set it as either end.");
  const ends = [items[0], items[Math.min(1, items.length - 1)]], pathBar = element("div", { className: "controls" }, path);
  button("Chosen image as first", pathBar, () => { ends[0] = chosen; walk(); });
  button("Chosen image as second", pathBar, () => { ends[1] = chosen; walk(); });
  const way = element("div", { className: "faces" }, path);
  const [firstFace, middle, lastFace] = ["the first image", "between them", "the second image"].map((name) => imageCanvas(null, shape, way, name));
  let t = 0.5;
  slider("Way from first to second", pathBar, { low: 0, high: 1, value: 0.5, step: 0.01 }, (v) => { t = v; go(); });
  const steps = strip(path, shape, "image on the way");
  const go = latest(async () => {
    const [a, b] = await Promise.all(ends.map((item) => item.latent()));
    paintPixels(middle, await engine.decode(between(a, b, t, levels), 1, given(ends[0].code)), shape);
  });
  const walk = latest(async () => {
    paintPixels(firstFace, ends[0].pixels, shape);
    paintPixels(lastFace, ends[1].pixels, shape);
    await go();
    const [a, b] = await Promise.all(ends.map((item) => item.latent())), z = new Float32Array(SHOWN * size);
    for (let k = 0; k < SHOWN; k++) z.set(between(a, b, k / (SHOWN - 1), levels), k * size);
    const found = imagesOf(await engine.decode(z, SHOWN, given(ends[0].code)), size);
    steps.show(found.map((pixels, k) => ({ pixels, act: () => choose(makeItem(pixels, "An image between two", ends[0].code, null, Promise.resolve(z.slice(k * size, (k + 1) * size)))) })));
  });

  // -- new images --------------------------------------------------------------------------------------------------------
  const fresh = section("New images", "Drawn from the model. A low temperature gives common images, a high one more variation; each level has its own.");
  const freshBar = element("div", { className: "controls" }, fresh), drawnImages = strip(fresh, shape, "new image");
  let draws = 1, label = classes.length ? 0 : null;
  const temperatures = Object.fromEntries(levels.map(([name]) => [name, 0.7]));
  if (classes.length) choice("Class", freshBar, classes, 0, (i) => { label = i; draw(); });
  levels.forEach(([name]) => slider(`temperature of ${name}`, freshBar, { low: 0, high: 1.5, value: 0.7, step: 0.05 }, (v) => { temperatures[name] = v; draw(); }));
  button("New draws", freshBar, () => { draws++; draw(); });
  const draw = latest(async () => {
    const code = label ?? -1, found = imagesOf(await engine.sample(SHOWN, { seed: draws, temperature: { ...temperatures }, given: label }), size);
    if (drawnImages.count === SHOWN) drawnImages.repaint(found);
    else drawnImages.show(found.map((_, k) => ({ pixels: found[k], act: () => choose(makeItem(drawn[k], "A new image", page.classifies ? -1 : code)) })));
    drawn = found;
  });
  let drawn = [];

  // -- the reader's images, and the gallery --------------------------------------------------------------------------
  const own = section("Your images", "Drop image files, or choose some: each gets its p-value and its anomaly map, and joins the cloud and the gallery.");
  const box = element("div", { className: "drop" }, own), file = element("input", { type: "file", accept: "image/*", multiple: true });
  labelled("Image files; drop them here", file, box);
  const told = element("p", { className: "readout" }, box);
  told.setAttribute("role", "status");
  const readFiles = async (files) => {
    for (const from of [...files].slice(0, 64)) {
      try {
        if (from.size > 10 * 2 ** 20) throw new Error(`got a file of ${Math.round(from.size / 2 ** 20)} MiB; expected at most 10`);
        told.textContent = `Reading ${from.name}.`;
        const { pixels, places: where } = await ask("read", { file: new Uint8Array(await from.arrayBuffer()) });
        const item = Object.assign(makeItem(pixels, from.name, conditional ? 0 : -1, where), { own: true });
        items.push(item);
        told.textContent = `Judging ${from.name}.`;
        await choose(item);
        if (!item.score) await judge([item]);
        told.textContent = `${from.name}: ${item.score.p === null ? `score ${short(item.score.score)}` : pText(item.score.p)}.`;
        showGallery();
      } catch (error) { told.textContent = `${from.name}: ${error.message}`; }
    }
  };
  file.addEventListener("change", () => readFiles(file.files));
  box.addEventListener("dragover", (event) => { event.preventDefault(); box.classList.add("over"); });
  box.addEventListener("dragleave", () => box.classList.remove("over"));
  box.addEventListener("drop", (event) => { event.preventDefault(); box.classList.remove("over"); readFiles(event.dataTransfer.files); });

  const kept = section(page.folder ? "Images of the run, by p-value" : "Gallery by p-value", `The most anomalous first. ${page.held_out ? `Of images like those of training a share ${short(page.alpha)} is flagged (orange frame).` : "No images were held out, so there are scores and no p-values."}`);
  const galleryBar = element("div", { className: "controls" }, kept), progress = element("p", { className: "readout" }, kept), wall = strip(kept, shape, "image");
  progress.setAttribute("role", "status");
  let stopped = true, maps = false;
  const scorer = button(`Score ${Math.min(items.length, 64)} more images`, galleryBar, async () => {
    if (!stopped) { stopped = true; return; }
    stopped = false;
    scorer.textContent = "Stop";
    const wanted = items.filter((item) => !item.score).slice(0, 64);
    for (let i = 0; i < wanted.length && !stopped; i += SHOWN) {
      progress.textContent = `${i} of ${wanted.length} images are scored.`;
      await judge(wanted.slice(i, i + SHOWN));
      showGallery();
    }
    stopped = true;
    progress.textContent = "";
    scorer.textContent = "Score more images";
    scorer.disabled = !items.some((item) => !item.score);
    showGallery();
    cloud.plot.redraw();
  });
  if (!page.classifies) checkbox("Anomaly maps", galleryBar, false, async (on) => {
    maps = on;
    for (const item of ranked().slice(0, 24)) {
      if (!maps) break;
      item.map ??= await ask("anomaly_map", { x: item.pixels, n: 1, ...given(item.code) });
      showGallery();
    }
    showGallery();
  });
  const ranked = () => items.filter((item) => item.score).sort((a, b) => (a.score.p ?? 0) - (b.score.p ?? 0) || b.score.score - a.score.score);
  function showGallery() {
    wall.show(ranked().slice(0, 200).map((item) => ({
      pixels: item.pixels, words: item.score.p === null ? `score ${short(item.score.score)}` : pText(item.score.p), mark: flagged(item) ? "flagged" : "",
      map: maps ? item.map : null, act: () => choose(item, true),
    })));
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => cloud.plot.redraw());
  cloud.frame();
  await choose(chosen);
  await walk();
  await draw();
  return Object.assign(engine, { items, choose, first, gallery, change: (k, v) => { amounts[k] = v; return apply(); } });
}
