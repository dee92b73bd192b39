// Images on the page: pixels on a canvas, strips of images that can be chosen, anomaly maps.

/** Paint an image of one or three channels, values from 0 to 255. */
function paintPixels(canvas, pixels, [height, width, channels]) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[channels === 3 ? 3 * i + c : i];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

/** An image on a canvas of its own. */
function imageCanvas(pixels, shape, parent, label) {
  const canvas = element("canvas", { className: "image" }, parent);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  if (pixels) paintPixels(canvas, pixels, shape);
  else Object.assign(canvas, { width: shape[1], height: shape[0] });
  return canvas;
}

/** An anomaly map over its image in grey: orange where less likely than usual, blue where more, up to 6 deviations. */
function paintMap(canvas, map, pixels, [height, width, channels]) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const grey = channels === 3 ? (pixels[3 * i] + pixels[3 * i + 1] + pixels[3 * i + 2]) / 3 : pixels[i];
    const t = Math.min(Math.abs(map[i]) / 6, 1), tone = map[i] > 0 ? [232, 120, 20] : [40, 110, 190];
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = (1 - t) * (0.6 * grey + 90) + t * tone[c];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

/** A row of images that can be chosen; `show` replaces them. */
function strip(parent, shape, label) {
  const place = element("div", { className: "strip" }, parent);
  place.setAttribute("role", "group");
  place.setAttribute("aria-label", label);
  return {
    place,
    /** `items` have pixels, words and act, what a click does; mark is the class of its frame. */
    show(items) {
      place.replaceChildren(...items.map(({ pixels, words, act, mark = "", map = null }, i) => {
        const own = element("button", { type: "button", className: `tile ${mark}` });
        const canvas = imageCanvas(pixels, shape, own, `${label} ${i + 1}`);
        if (map) paintMap(canvas, map, pixels, shape);
        for (const line of words ? words.split("\n", 3) : []) element("span", { textContent: line, title: line }, own);
        own.addEventListener("click", act);
        return own;
      }));
    },
    /** New pixels on the canvases that are there, so that a slider keeps them. */
    repaint(all) { place.querySelectorAll("canvas").forEach((canvas, i) => paintPixels(canvas, all[i], shape)); },
    get count() { return place.children.length; },
  };
}

/** Some images out of an array of many. */
const imagesOf = (flat, size) => Array.from({ length: flat.length / size }, (_, i) => flat.slice(i * size, (i + 1) * size));

/** The latent at t, from 0 to 1, between two: each level keeps to the sphere between theirs. */
function between(a, b, t, levels) {
  const out = new Float32Array(a.length);
  for (const [, from, to] of levels) {
    let [aa, bb, ab] = [0, 0, 0];
    for (let i = from; i < to; i++) { aa += a[i] * a[i]; bb += b[i] * b[i]; ab += a[i] * b[i]; }
    const [ra, rb] = [Math.sqrt(aa), Math.sqrt(bb)], angle = Math.acos(Math.min(Math.max(ab / Math.max(ra * rb, 1e-12), -1), 1));
    const flat = Math.min(ra, rb) === 0 || Math.sin(angle) < 1e-4, radius = (1 - t) * ra + t * rb;
    const [wa, wb] = flat ? [1 - t, t] : [(radius * Math.sin((1 - t) * angle)) / Math.sin(angle) / ra, (radius * Math.sin(t * angle)) / Math.sin(angle) / rb];
    for (let i = from; i < to; i++) out[i] = wa * a[i] + wb * b[i];
  }
  return out;
}
