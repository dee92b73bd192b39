// What a model answers, in the units of the user: `sample`, `encode`, `decode` and `logProb`, given y where there is one.
// Rows are Float64Array, n of them; a page needs nothing else of a model, wherever it is evaluated.

/** A condition as layers take it. */
const conditionOf = (data, rows) => (data.length ? { data, rows, size: data.length / rows } : null);

/** What is known of rows without the network: the p-value of a log density; null where nothing was held out. */
class RowJudge {
  constructor(page) {
    this.scores = unpacked(page.scores);
    this.latent = page.latent; // numbers of a latent
  }

  pValue(logProb) { return this.scores.length ? pValue(-logProb, this.scores) : null; }
}

class DensityEngine extends RowJudge {
  constructor(page) {
    super(page);
    this.model = new Model(page.model);
    this.units = new Units(page.frame);
    this.givenUnits = new Units(page.given_frame);
    this.latent = this.units.dim;
  }

  condition(given, rows = 1) { return given && given.length ? conditionOf(this.givenUnits.toModel(given, rows), rows) : null; }

  sample(n, { seed = 0, temperature = 1, given = null } = {}) {
    return this.decode(this.model.drawLatents(new Random(seed), n, temperature), n, { given });
  }

  encode(x, n, { given = null, rows = 1 } = {}) {
    return this.model.encode(this.units.toModel(x, n), n, this.condition(given, rows)).z;
  }

  decode(z, n, { given = null, rows = 1 } = {}) {
    return this.units.fromModel(this.model.decode(z, n, this.condition(given, rows)).x, n);
  }

  logProb(x, n, { given = null, rows = 1 } = {}) {
    const found = this.model.logProb(this.units.toModel(x, n), n, this.condition(given, rows));
    return found.map((v, row) => (this.units.possible(x, row) ? v + this.units.logDet : -Infinity));
  }
}

class ClassJudge extends RowJudge {
  constructor(page) {
    super(page);
    this.logPrior = unpacked(page.log_prior);
    this.temperature = page.temperature;
    this.carried = page.carried; // numbers of the block that carries the class
  }

  probabilitiesOf(joint) {
    return joint.map((row) => {
      const scaled = (row.some(Number.isFinite) ? row.map((v) => v / this.temperature) : this.logPrior), all = logSumExp(scaled);
      return scaled.map((v) => Math.exp(v - all));
    });
  }
}

class ClassifierEngine extends ClassJudge {
  constructor(page) {
    super(page);
    this.model = new Model(page.model);
    this.units = new Units(page.frame);
    this.latent = this.model.size;
    this.carried = this.model.right[0].size;
    this.pad = page.pad && { draws: unpacked(page.pad.draws), scale: page.pad.scale, size: page.pad.size };
  }

  /** The left end: rows, and the numbers that fill it up. */
  left(x, n, filler = null) {
    const inside = this.units.toModel(x, n);
    if (!this.pad) return inside;
    const draw = filler || new Float64Array(this.pad.size);
    return joined([inside, rowsOf(draw, n, this.pad.size)], n);
  }

  sample(n, { seed = 0, temperature = 1, label = null } = {}) {
    const random = new Random(seed), [first] = this.model.right;
    const z = new Float64Array(n * this.model.size);
    for (let row = 0; row < n; row++) {
      const known = { [first.name]: first.law.label(label ?? this.drawLabel(random), first.size) };
      z.set(this.model.drawLatents(random, 1, temperature, known), row * this.model.size);
    }
    return this.decode(z, n);
  }

  drawLabel(random) {
    let left = random.uniform(), k = 0;
    while (k < this.logPrior.length - 1 && (left -= Math.exp(this.logPrior[k])) > 0) k++;
    return k;
  }

  encode(x, n) { return this.model.encode(this.left(x, n), n).z; }
  decode(z, n) { return this.units.fromModel(this.model.decode(z, n).x, n, this.model.size); }

  /** log p(x | class), one row of classes for each x. */
  byClass(x, n) {
    const plain = (rows) => rows.map((row) => row.map((v) => v + this.units.logDet));
    if (!this.pad) return plain(this.model.classLogProbs(this.left(x, n), n));
    const { draws, size, scale } = this.pad, count = draws.length / size, all = [];
    const width = new Float64Array(size).fill(scale);
    for (let i = 0; i < count; i++) {
      const filler = draws.subarray(i * size, (i + 1) * size), own = logNormalOf(filler, 0, size, width);
      all.push(this.model.classLogProbs(this.left(x, n, filler), n).map((row) => row.map((v) => v - own)));
    }
    return plain(all[0].map((row, r) => row.map((_, k) => logSumExp(all.map((each) => each[r][k])) - Math.log(count))));
  }

  joint(x, n) { return this.byClass(x, n).map((row) => row.map((v, k) => v + this.logPrior[k])); }

  logProb(x, n) { return Float64Array.from(this.joint(x, n), logSumExp); }
}

class ObservationJudge {
  constructor(page) {
    this.yUnits = new Units(page.y_frame);
    this.detector = page.detector && unpacked(page.detector);
    this.latent = page.latent;
  }

  /** Whether the simulator can have made y: a p-value, null where no pairs were held out. */
  pValue(y) {
    const d = this.detector;
    if (!d) return null;
    const inside = this.yUnits.toModel(y, 1), size = inside.length, count = d.ordered.length / size;
    const features = Float64Array.from(inside, (v, j) => {
      const own = d.ordered.subarray(j * count, (j + 1) * count), last = count - 1;
      let below = v <= own[0] ? 1 : count;
      if (v > own[0] && v < own[last]) {
        const i = searchSorted(own, v, true) - 1;
        below = i + 1 + (v - own[i]) / (own[i + 1] - own[i]);
      }
      const beyond = (Math.max(v - own[last], 0) - Math.max(own[0] - v, 0)) / d.spread[j];
      return normalScore((below - 0.5) / count) + beyond + (this.yUnits.possible(y, 0) ? 0 : 1000);
    });
    const white = features.map((v, j) => (v - d.mean[j]) / d.scale[j]);
    let square = 0;
    for (let i = 0; i < size; i++) for (let j = 0; j < size; j++) square += white[i] * d.precision[i * size + j] * white[j];
    const t = Math.sqrt(Math.max(square, 0));
    const surprisal = t <= d.start ? -Math.log(pValue(t, d.usual)) : d.there + (t - d.start) / d.excess;
    return pValue(surprisal, d.held_out);
  }
}

class PosteriorEngine extends ObservationJudge {
  constructor(page) {
    super(page);
    this.model = new Model(page.model);
    this.units = new Units(page.x_frame);
    this.conditional = page.conditional;
    this.support = page.support && unpacked(page.support);
    this.latent = this.model.size;
    this.noisy = this.model.left.length > 1;
  }

  /** What is given, as the network takes it: as a condition, or as the value of a block of the right end. */
  given(y, rows = 1) {
    const inside = this.yUnits.toModel(y, rows);
    return this.conditional ? [conditionOf(inside, rows), {}] : [null, { y: inside }];
  }

  sample(n, { y, seed = 0, temperature = 1 }) {
    const [cond, known] = this.given(y);
    return this.fromLeft(this.model.decode(this.model.drawLatents(new Random(seed), n, temperature, known), n, cond).x, n);
  }

  fromLeft(left, n) { return this.units.fromModel(left, n, this.model.size); }

  /** The left end of parameters, with noise, where the model has it, or zeros. */
  left(x, n, noise = null) {
    const inside = this.units.toModel(x, n);
    if (!this.noisy) return inside;
    return joined([inside, noise || new Float64Array(n * (this.model.size - this.units.dim))], n);
  }

  encode(x, n, { y }) { return this.model.encode(this.left(x, n), n, this.given(y)[0]).z; }
  decode(z, n, { y }) { return this.fromLeft(this.model.decode(z, n, this.given(y)[0]).x, n); }

  /** log p(x | y) of one observation. */
  logProb(x, n, { y }) {
    const [cond, known] = this.given(y);
    let noise = null, centre = 0;
    if (this.noisy) { // at the noise with which x explains y exactly
      const [first] = this.model.right, size = this.model.size, z = this.model.encode(this.left(x, n), n, cond).z;
      noise = new Float64Array(n * first.size).map((_, i) => known.y[i % first.size] - z[((i / first.size) | 0) * size + (i % first.size)]);
      centre = first.law.log(known.y, 0, first.size, known.y);
    }
    const found = this.model.logProb(this.left(x, n, noise), n, cond, known);
    return found.map((v, row) => (this.possible(x, row) ? v - centre + this.units.logDet : -Infinity));
  }

  possible(x, row) {
    if (!this.support) return true;
    const size = this.units.columns, [low, high] = [this.support.low, this.support.high];
    for (let j = 0; j < size; j++) { const v = x[row * size + j]; if (v < low[j] || v > high[j]) return false; }
    return true;
  }

  /** Noise-free data of parameters, by a network that has a forward direction. */
  predict(x, n) {
    const z = this.model.encode(this.left(x, n), n).z, size = this.yUnits.dim, inside = new Float64Array(n * size);
    for (let row = 0; row < n; row++) inside.set(z.subarray(row * this.model.size, row * this.model.size + size), row * size);
    return this.yUnits.fromModel(inside, n);
  }
}
