// The model: its layers, the laws of the blocks at its two ends, and the units of the user.

/** A description as it is in the page, with its arrays as typed arrays of double precision, or of whole numbers. */
function unpacked(value) {
  if (Array.isArray(value)) return value.map(unpacked);
  if (value === null || typeof value !== "object") return value;
  const kinds = { f4: Float32Array, f8: Float64Array, i4: Int32Array, u1: Uint8Array };
  const [first] = Object.keys(value);
  if (first in kinds) {
    const text = atob(value[first]), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const numbers = new kinds[first](bytes.buffer);
    return first === "f4" ? Float64Array.from(numbers) : numbers;
  }
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, unpacked(item)]));
}

/** log N(x; 0, scale^2 I) of the numbers of one row. */
function logNormalOf(x, start, size, scale, centre = null) {
  let total = 0;
  for (let j = 0; j < size; j++) {
    const width = scale === null ? 1 : scale[j], v = (x[start + j] - (centre ? centre[j] : 0)) / width;
    total += -0.5 * v * v - 0.5 * LOG_2PI - Math.log(width);
  }
  return total;
}

/** Laws of right-hand blocks. `log` takes the numbers of a block in one row, `draw` makes them; both know what is given. */
const LAWS = {
  normal: () => ({
    log: (x, start, size) => logNormalOf(x, start, size, null),
    draw: (random, size, temperature) => random.normals(size).map((v) => temperature * v),
  }),
  padding: ({ scale }) => ({
    log: (x, start, size) => logNormalOf(x, start, size, scale),
    draw: (random, size, temperature) => random.normals(size).map((v, j) => temperature * scale[j] * v),
  }),
  given: ({ scale }) => ({
    known: true,
    log: (x, start, size, value) => logNormalOf(x, start, size, scale, value),
    draw: (random, size, temperature, value) => random.normals(size).map((v, j) => value[j] + temperature * scale[j] * v),
    /** log N(block; one-hot label k) for every class k. */
    classes: (x, start, size) => Float64Array.from({ length: size }, (_, k) =>
      logNormalOf(x, start, size, scale, Float64Array.from({ length: size }, (_, j) => +(j === k)))),
    label: (k, size) => Float64Array.from({ length: size }, (_, j) => +(j === k)),
  }),
  mixture({ means, whitening, inverse, log_weights: logWeights }) {
    const count = logWeights.length, size = means.length / count;
    const classes = (x, start) => Float64Array.from({ length: count }, (_, k) => {
      let distance = 0, log = -0.5 * size * LOG_2PI;
      for (let i = 0; i < size; i++) {
        let white = 0;
        for (let j = i; j < size; j++) white += whitening[(k * size + i) * size + j] * (x[start + j] - means[k * size + j]);
        distance += white * white;
        log += Math.log(whitening[(k * size + i) * size + i]);
      }
      return log - 0.5 * distance;
    });
    const all = logSumExp(logWeights);
    return {
      known: true,
      classes,
      log(x, start, _, label) {
        const terms = classes(x, start).map((term, k) => term + logWeights[k] - all);
        return label === null || label === undefined || label < 0 ? logSumExp(terms) : terms[label];
      },
      draw(random, _, temperature, label) {
        const noise = random.normals(size), k = label;
        return Float64Array.from({ length: size }, (_, i) => {
          let v = means[k * size + i];
          for (let j = 0; j < size; j++) v += temperature * inverse[(k * size + i) * size + j] * noise[j];
          return v;
        });
      },
      label: (k) => k,
    };
  },
};

/** An invertible network between two ends, in the units of the network. */
class Model {
  constructor(description) {
    const { left, right, layer } = unpacked(description);
    this.left = left;
    this.layer = makeLayer(layer);
    this.size = left.reduce((sum, block) => sum + block.size, 0);
    let start = 0;
    this.right = right.map((block) => {
      const placed = { ...block, start, law: LAWS[block.law.kind](block.law) };
      start += block.size;
      return placed;
    });
  }

  /** { z, logDet } of n rows of the left end. */
  encode(x, n, cond = null) { const logDet = new Float64Array(n); return { z: this.layer.encode(x, n, cond, logDet), logDet }; }

  /** { x, logDet } of n rows of the right end. */
  decode(z, n, cond = null) { const logDet = new Float64Array(n); return { x: this.layer.decode(z, n, cond, logDet), logDet }; }

  /** The law of each row's latents plus the log-determinant; `known` has the value of each block that is given. */
  logProb(x, n, cond = null, known = {}) {
    const { z, logDet } = this.encode(x, n, cond);
    return logDet.map((value, row) => {
      for (const block of this.right) {
        value += block.law.log(z, row * this.size + block.start, block.size, known[block.name] ?? null);
      }
      return Number.isNaN(value) ? -Infinity : value;
    });
  }

  /** log p(x | class) of every class, `classes` numbers a row. */
  classLogProbs(x, n) {
    const { z, logDet } = this.encode(x, n, null);
    const [first] = this.right, rows = [];
    for (let row = 0; row < n; row++) {
      let rest = logDet[row];
      for (const block of this.right.slice(1)) rest += block.law.log(z, row * this.size + block.start, block.size);
      rows.push(first.law.classes(z, row * this.size + first.start, first.size).map((term) => term + rest));
    }
    return rows;
  }

  /** Draws of the right end, n rows. */
  drawLatents(random, n, temperature = 1, known = {}) {
    const z = new Float64Array(n * this.size);
    for (let row = 0; row < n; row++) {
      for (const block of this.right) {
        z.set(block.law.draw(random, block.size, temperature, known[block.name]), row * this.size + block.start);
      }
    }
    return z;
  }
}

/** The units of the columns: the model sees (value - origin) / scale, and no constant column. */
class Units {
  constructor({ origin, scale, constant }) {
    this.origin = origin;
    this.scale = scale;
    this.columns = origin.length;
    this.kept = Array.from(origin.keys()).filter((j) => !constant.includes(j));
    this.dim = this.kept.length;
    this.logDet = -this.kept.reduce((sum, j) => sum + Math.log(scale[j]), 0);
    this.constant = constant;
  }

  toModel(values, n) {
    const out = new Float64Array(n * this.dim);
    for (let row = 0, to = 0; row < n; row++) {
      for (const j of this.kept) out[to++] = Math.fround((values[row * this.columns + j] - this.origin[j]) / this.scale[j]);
    }
    return out;
  }

  fromModel(x, n, width = this.dim) {
    const out = new Float64Array(n * this.columns);
    for (let row = 0; row < n; row++) {
      for (let j = 0; j < this.columns; j++) out[row * this.columns + j] = this.origin[j];
      this.kept.forEach((j, i) => { out[row * this.columns + j] += x[row * width + i] * this.scale[j]; });
    }
    return out;
  }

  /** Whether a row has the values of the constant columns, up to rounding. */
  possible(values, row) {
    return this.constant.every((j) => {
      const v = values[row * this.columns + j], o = this.origin[j];
      return Math.abs(v - o) <= 1e-7 * Math.abs(o);
    });
  }
}

/** The share of calibration scores at least as extreme: p = (1 + #{held out >= score}) / (1 + m). */
function pValue(score, sorted) {
  const from = Number.isNaN(score) ? sorted.length : searchSorted(sorted, score);
  return (1 + sorted.length - from) / (1 + sorted.length);
}
