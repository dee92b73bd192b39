// Layers: `encode` and `decode` take rows x (n of them), a condition, and an array of n numbers to which they add
// log|d(right)/d(left)|; they return new rows. An event of any shape is one flat row.

const LAYERS = {
  chain(node) {
    const parts = node.layers.map(makeLayer);
    return {
      encode(x, n, cond, logDet) { for (const part of parts) x = part.encode(x, n, cond, logDet); return x; },
      decode(y, n, cond, logDet) {
        for (let i = parts.length - 1; i >= 0; i--) y = parts[i].decode(y, n, cond, logDet);
        return y;
      },
    };
  },

  inverse(node) {
    const inner = makeLayer(node.layer);
    const run = (method) => (x, n, cond, logDet) => {
      const own = new Float64Array(n), y = inner[method](x, n, cond, own);
      for (let row = 0; row < n; row++) logDet[row] -= own[row];
      return y;
    };
    return { encode: run("decode"), decode: run("encode") };
  },

  /** y = (x - loc) / scale. */
  affine({ loc, scale }) {
    const size = loc.length, total = -scale.reduce((sum, value) => sum + Math.log(Math.abs(value)), 0);
    return {
      encode(x, n, cond, logDet) { add(logDet, total); return x.map((v, i) => (v - loc[i % size]) / scale[i % size]); },
      decode(y, n, cond, logDet) { add(logDet, total); return y.map((v, i) => v * scale[i % size] + loc[i % size]); },
    };
  },

  permute({ places }) {
    const back = new Int32Array(places.length);
    places.forEach((from, to) => { back[from] = to; });
    return {
      encode: (x, n) => columnsOf(x, n, places.length, places),
      decode: (y, n) => columnsOf(y, n, places.length, back),
    };
  },

  /** y = (x - mean) A at each position. */
  linear(node) {
    const size = node.mean.length, mean = node.mean, there = packed(node.weight, size, size);
    const back = packed(node.inverse, size, size);
    return {
      encode(x, n, cond, logDet) {
        add(logDet, node.log_det);
        const out = new Float64Array(x.length);
        addProduct(x.map((v, i) => v - mean[i % size]), x.length / size, there, out);
        return out;
      },
      decode(y, n, cond, logDet) {
        add(logDet, node.log_det);
        const out = rowsOf(mean, y.length / size, size);
        addProduct(y, y.length / size, back, out);
        return out;
      },
    };
  },

  /** y = x - (b + c A). */
  regression({ matrix, offset }) {
    const size = offset.length, weight = packed(matrix, matrix.length / size, size);
    const moved = (sign) => (x, n, cond) => {
      const own = rowsOf(offset, cond.rows, size);
      addProduct(cond.data, cond.rows, weight, own);
      const all = rowsOf(own, n, size);
      return x.map((v, i) => v + sign * all[i]);
    };
    return { encode: moved(-1), decode: moved(1) };
  },

  /** The same scalar map of every element, with parameters of its own where it has any. */
  elementwise(node) {
    const scalar = makeScalar(node.scalar), size = node.size, params = scalar.params;
    const run = (method) => (x, n, cond, logDet) => {
      const out = new Float64Array(x.length);
      for (let i = 0; i < x.length; i++) {
        out[i] = scalar[method](x[i], node.raw, (i % size) * params, 1);
        logDet[(i / size) | 0] += slope.log;
      }
      return out;
    };
    return { encode: run("encode"), decode: run("decode") };
  },

  /** A scalar map on its own, whose parameters are the condition. */
  scalar(node) {
    const scalar = makeScalar(node.scalar);
    const run = (method) => (x, n, cond, logDet) => x.map((v, row) => {
      const y = scalar[method](v, cond && cond.data, cond && cond.rows > 1 ? row * cond.size : 0, 1);
      logDet[row] += slope.log;
      return y;
    });
    return { encode: run("encode"), decode: run("decode") };
  },

  coupling(node) {
    const { kept, moved, channels } = node, size = kept.length + moved.length, count = moved.length;
    const scalar = makeScalar(node.scalar), net = makeNet(node.net), params = scalar.params;
    const run = (method) => (x, n, cond, logDet) => {
      const raw = net(columnsOf(x, n, size, kept), n, cond), out = x.slice();
      for (let row = 0; row < n; row++) {
        let log = 0;
        for (let e = 0; e < count; e++) {
          // the network's output is parameter-major at each position
          const at = row * count * params + ((e / channels) | 0) * params * channels + (e % channels);
          const place = row * size + moved[e];
          out[place] = scalar[method](x[place], raw, at, channels);
          log += slope.log;
        }
        logDet[row] += log;
      }
      return out;
    };
    return { encode: run("encode"), decode: run("decode") };
  },

  autoregressive(node) {
    const scalar = makeScalar(node.scalar), net = makeNet(node.net), params = scalar.params, size = node.size;
    function through(method, x, raw, n, logDet) {
      return x.map((v, i) => {
        const y = scalar[method](v, raw, i * params, 1);
        if (logDet) logDet[(i / size) | 0] += slope.log;
        return y;
      });
    }
    return {
      encode: (x, n, cond, logDet) => through("encode", x, net(x, n, cond), n, logDet),
      decode(y, n, cond, logDet) {
        let x = new Float64Array(y.length);
        // element i is final after pass i + 1, since its parameters look at the ones before it only
        for (let i = 0; i < size; i++) x = through("decode", y, net(x, n, cond), n, null);
        through("encode", x, net(x, n, cond), n, logDet);
        return x;
      },
    };
  },

  conditioned(node) {
    const inner = makeLayer(node.layer), embedding = makeNet(node.embedding);
    let last = null, kept = null; // the features of one condition serve many calls
    function seen(cond) {
      if (cond !== last) {
        const data = embedding(cond.data, cond.rows, null);
        last = cond;
        kept = { data, rows: cond.rows, size: data.length / cond.rows };
      }
      return kept;
    }
    return {
      encode: (x, n, cond, logDet) => inner.encode(x, n, seen(cond), logDet),
      decode: (y, n, cond, logDet) => inner.decode(y, n, seen(cond), logDet),
    };
  },

  concatenate(node) {
    const parts = node.layers.map(makeLayer), { sizes } = node;
    const run = (method) => (x, n, cond, logDet) => {
      const shares = shared(x, n, sizes);
      return joined(parts.map((part, i) => part[method](shares[i], n, cond, logDet)), n);
    };
    return { encode: run("encode"), decode: run("decode") };
  },

  /** Factored out: [inner(kept; cond), factored(moved; context(kept, cond))]. */
  split(node) {
    const { kept, moved } = node, size = kept.length + moved.length;
    const inner = makeLayer(node.inner), factored = node.factored && makeLayer(node.factored);
    const context = node.context && makeNet(node.context);
    const seen = (first, n, cond) => {
      const data = context ? context(first, n, cond) : first;
      return { data, rows: n, size: data.length / n };
    };
    return {
      encode(x, n, cond, logDet) {
        const first = columnsOf(x, n, size, kept);
        let rest = columnsOf(x, n, size, moved);
        if (factored) rest = factored.encode(rest, n, seen(first, n, cond), logDet);
        return joined([inner.encode(first, n, cond, logDet), rest], n);
      },
      decode(y, n, cond, logDet) {
        let [first, rest] = shared(y, n, [kept.length, moved.length]);
        first = inner.decode(first, n, cond, logDet);
        if (factored) rest = factored.decode(rest, n, seen(first, n, cond), logDet);
        const out = new Float64Array(n * size);
        for (let row = 0; row < n; row++) {
          kept.forEach((place, i) => { out[row * size + place] = first[row * kept.length + i]; });
          moved.forEach((place, i) => { out[row * size + place] = rest[row * moved.length + i]; });
        }
        return out;
      },
    };
  },

  /** u = Φ^-1(F(x)) with a histogram's piecewise linear F, one table of bins for each element. */
  histogram(node) {
    const { size, left, right, below, above, weight, floor } = node, bins = left.length / size;
    const table = (values, element) => values.subarray(element * bins, (element + 1) * bins);
    const lastAtMost = (values, v) => Math.min(Math.max(searchSorted(values, v, true) - 1, 0), bins - 1);
    return toNormal(size, floor, {
      interval: (e) => [left[e * bins], right[e * bins + bins - 1]],
      tails(x, e) {
        const i = e * bins + lastAtMost(table(left, e), x), density = weight[i] / (right[i] - left[i]);
        return [below[i] + (x - left[i]) * density, above[i] + (right[i] - x) * density, Math.log(density)];
      },
      quantile(under, over, e) {
        const lower = under < over;
        const k = lower ? lastAtMost(table(below, e), under) : bins - 1 - lastAtMost(table(above, e).slice().reverse(), over);
        const i = e * bins + k, density = weight[i] / (right[i] - left[i]);
        return [lower ? left[i] + (under - below[i]) / density : right[i] - (over - above[i]) / density, Math.log(density)];
      },
    });
  },

  /** u = Φ^-1(F(x)) with F of a normal that is cut to bounds. */
  truncated(node) {
    const { mean, scale, low, high, floor } = node;
    const between = (a, b) => (a > 0 ? normalBelow(-a) - normalBelow(-b) : normalBelow(b) - normalBelow(a));
    const ends = Array.from(mean, (m, e) => [(low[e] - m) / scale[e], (high[e] - m) / scale[e]]);
    const mass = ends.map(([a, b]) => between(a, b));
    const logDensity = (z, e) => logNormal(z) - Math.log(scale[e]) - Math.log(mass[e]);
    return toNormal(mean.length, floor, {
      interval: (e) => [low[e], high[e]],
      tails(x, e) {
        const z = (x - mean[e]) / scale[e], [a, b] = ends[e];
        return [between(a, z) / mass[e], between(z, b) / mass[e], logDensity(z, e)];
      },
      quantile(under, over, e) {
        const [a, b] = ends[e];
        const z = scoreOf(normalBelow(a) + under * mass[e], normalBelow(-b) + over * mass[e], floor);
        return [mean[e] + scale[e] * z, logDensity(z, e)];
      },
    });
  },
};

function makeLayer(node) { return LAYERS[node.kind](node); }

function add(logDet, value) { for (let row = 0; row < logDet.length; row++) logDet[row] += value; }

/** The shares of rows, each of so many columns. */
function shared(x, n, sizes) {
  const width = x.length / n;
  let start = 0;
  return sizes.map((size) => {
    const part = new Float64Array(n * size);
    for (let row = 0; row < n; row++) part.set(x.subarray(row * width + start, row * width + start + size), row * size);
    start += size;
    return part;
  });
}

const logNormal = (u) => -0.5 * u * u - 0.5 * LOG_2PI;

/** Φ^-1 of the probability `under` a point, from the smaller of it and that above: no digit is lost. */
const scoreOf = (under, over, floor) =>
  under < over ? normalScore(Math.max(under, floor)) : -normalScore(Math.max(over, floor));

function toNormal(size, floor, { interval, tails, quantile }) {
  const clipped = (x, e) => { const [low, high] = interval(e); return Math.min(Math.max(x, low), high); };
  return {
    encode(x, n, cond, logDet) {
      return x.map((v, i) => {
        const e = i % size, [under, over, logDensity] = tails(clipped(v, e), e), u = scoreOf(under, over, floor);
        logDet[(i / size) | 0] += logDensity - logNormal(u);
        return u;
      });
    },
    decode(y, n, cond, logDet) {
      return y.map((u, i) => {
        const e = i % size, [x, logDensity] = quantile(normalBelow(u), normalBelow(-u), e);
        logDet[(i / size) | 0] += logDensity - logNormal(u);
        return clipped(x, e);
      });
    },
  };
}
