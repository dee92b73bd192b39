// The gallery of a folder that the reader named: its images are scored while the page is open, sorted by p-value.

const TILES = 48; // images that are shown at a time

/**
 * @param page what the page reads; its `folder` has name, count, left_out (more than are read), skipped and some_skipped
 * @param parts of the page of images: shape, makeItem, choose, flagged, scoreOf (the score of the i-th of an answer)
 * @returns what starts the scoring; until then it waits
 */
function folderGallery(page, { shape, makeItem, choose, flagged, scoreOf }) {
  const { classes } = page;
  const { name, count, left_out: left, skipped, some_skipped: some } = page.folder, size = shape.reduce((a, b) => a * b, 1);
  const entries = []; // number, score, and item once it was shown
  const place = section(`Images of “${clipped(name, 40)}”, by p-value`,
    `${left ? `${count} images, evenly spread over the folder (${left} more are left out),` : `All ${count} images`} are scored while this page is open, in random order, and sorted as they come. Click one to see it above${page.classifies ? "" : ", with its anomaly map"}.`);
  if (skipped) {
    const box = element("details", { className: "more" }, place);
    element("summary", { textContent: `${skipped} ${skipped === 1 ? "file" : "files"} could not be used` }, box);
    table([["file", "reason"], ...some], box);
    if (skipped > some.length) element("p", { className: "note", textContent: `and ${skipped - some.length} more` }, box);
  }
  const judged = element("p", { className: "verdict" }, place);
  caution(place);
  const progress = element("progress", { max: count, value: 0 }, place), told = element("p", { className: "readout" }, place);
  progress.setAttribute("aria-label", "images that are scored");
  const bar = element("div", { className: "controls" }, place), wall = strip(place, shape, "image of the folder");
  const turns = element("div", { className: "controls" }, place);
  let paused = false, started = false, usual = false, from = 0, shown = [], stale = false;

  const pause = button("Pause", bar, () => {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    tell();
    run();
  });
  choice("First", bar, ["the most anomalous", "the most usual"], 0, (i) => { usual = i === 1; from = 0; show(); });
  const before = button("Previous", turns, () => { from -= TILES; show(); }), where = element("span", { className: "readout" }, turns);
  const after = button("Next", turns, () => { from += TILES; show(); });

  /** What the share of flagged images says about the folder. */
  function summary() {
    const n = entries.length, { alpha } = page, flags = entries.filter(flagged).length, usualCount = alpha * n;
    if (!n) { judged.textContent = "None is scored yet."; return; }
    if (entries[0].score.p === null) { judged.textContent = "No p-values: no images were held out. The images are sorted by their score."; return; }
    const many = flags > usualCount + 3 * Math.sqrt(usualCount * (1 - alpha)) + 1;
    judged.className = `verdict ${many ? "bad" : ""}`;
    judged.textContent = `${flags} of ${n} images are flagged (p < ${short(alpha)}, orange frame); of ${n} like those of training about ${short(usualCount, 2)} would be.${
      many ? " So this folder holds images of another kind." : ""}`;
  }
  function tell(left = null) {
    const n = entries.length;
    progress.value = n;
    progress.hidden = n === count;
    pause.hidden = n === count;
    told.textContent = n === count ? "" : !started ? "Scoring begins after the checks of the model."
      : `${n} of ${count} are scored${paused ? "; paused" : left === null ? "" : `, ${left < 90 ? "about a minute" : `about ${Math.round(left / 60)} minutes`} left`}.`;
  }
  const compared = (a, b) => (a.score.p ?? 0) - (b.score.p ?? 0) || b.score.score - a.score.score;
  /** What stands below an image: its p-value, of a classifier its likeliest class, and its name. */
  const wordsOf = ({ score, item }) => {
    const likely = score.probability ? `class ${classes[score.probability.indexOf(Math.max(...score.probability))]}\n` : "";
    return `${score.p === null ? `score ${short(score.score)}` : pText(score.p)}\n${likely}${item.name}`;
  };
  const show = latest(async () => {
    const ranked = entries.slice().sort(usual ? (a, b) => compared(b, a) : compared);
    from = Math.max(0, Math.min(from, TILES * Math.floor((ranked.length - 1) / TILES)));
    const visible = ranked.slice(from, from + TILES), missing = visible.filter((entry) => !entry.item);
    if (missing.length) {
      const { pixels, names, codes } = await ask("gallery_images", { numbers: Int32Array.from(missing, (entry) => entry.number) });
      missing.forEach((entry, i) => { entry.item = Object.assign(makeItem(pixels.slice(i * size, (i + 1) * size), names[i], codes[i]), { score: entry.score }); });
    }
    const focused = shown[[...wall.place.children].indexOf(document.activeElement)]; // keeps the focus where it moves to
    shown = visible;
    wall.show(visible.map((entry) => ({
      pixels: entry.item.pixels, words: wordsOf(entry), mark: flagged(entry) ? "flagged" : "", act: () => choose(entry.item, true),
    })));
    wall.place.children[visible.indexOf(focused)]?.focus({ preventScroll: true });
    before.disabled = from === 0;
    after.disabled = from + TILES >= ranked.length;
    turns.hidden = ranked.length <= TILES;
    where.textContent = `${from + 1} to ${from + visible.length} of ${ranked.length}`;
  });
  // what the reader points at stays in its place
  const follow = () => { stale = wall.place.matches(":hover"); if (!stale) show(); };
  wall.place.addEventListener("pointerleave", () => { if (stale) follow(); });

  const run = latest(async () => {
    const start = performance.now(), already = entries.length;
    while (!paused && entries.length < count) {
      await resting(); // what the reader does comes first
      const answer = await ask("gallery", { start: entries.length }, true);
      answer.numbers.forEach((number, i) => entries.push({ number, score: scoreOf(answer, i), item: null }));
      summary();
      const each = (performance.now() - start) / (entries.length - already);
      tell((each * (count - entries.length)) / 1000);
      follow();
    }
    tell();
  });
  summary();
  tell();
  turns.hidden = true;
  return () => { started = true; tell(); return run(); };
}
