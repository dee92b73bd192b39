// Maps of single numbers. `encode` and `decode` take a number and its raw parameters, raw[at], raw[at + step], ...; they
// return the new number and leave log|dy/dx| in `slope.log`.

const slope = { log: 0 };

const SCALARS = {
  shift: () => ({
    params: 1,
    encode(x, raw, at) { slope.log = 0; return x + raw[at]; },
    decode(y, raw, at) { slope.log = 0; return y - raw[at]; },
  }),

  shift_scale({ bound, least }) {
    const logScale = (raw) => { const b = raw > 0 ? bound : least; return b * Math.tanh(raw / b); };
    return {
      params: 2,
      encode(x, raw, at, step) { slope.log = logScale(raw[at + step]); return x * Math.exp(slope.log) + raw[at]; },
      decode(y, raw, at, step) { slope.log = logScale(raw[at + step]); return (y - raw[at]) * Math.exp(-slope.log); },
    };
  },

  sigmoid_scale() {
    const logScale = (raw) => Math.LN2 + logSigmoid(raw);
    return {
      params: 2,
      encode(x, raw, at, step) { slope.log = logScale(raw[at + step]); return (x + raw[at]) * Math.exp(slope.log); },
      decode(y, raw, at, step) { slope.log = logScale(raw[at + step]); return y * Math.exp(-slope.log) - raw[at]; },
    };
  },

  composed(node) {
    const parts = node.scalars.map(makeScalar);
    const starts = parts.map((_, i) => parts.slice(0, i).reduce((sum, part) => sum + part.params, 0));
    return {
      params: parts.reduce((sum, part) => sum + part.params, 0),
      encode(x, raw, at, step) {
        let log = 0;
        for (let i = 0; i < parts.length; i++) { x = parts[i].encode(x, raw, at + starts[i] * step, step); log += slope.log; }
        slope.log = log;
        return x;
      },
      decode(y, raw, at, step) {
        let log = 0;
        for (let i = parts.length - 1; i >= 0; i--) { y = parts[i].decode(y, raw, at + starts[i] * step, step); log += slope.log; }
        slope.log = log;
        return y;
      },
    };
  },

  spline: makeSpline,

  sigmoid: () => ({ params: 0, encode: toUnit, decode: fromUnit }),
  logit: () => ({
    params: 0,
    encode(x) { const y = fromUnit(x); slope.log = -slope.log; return y; },
    decode(y) { const x = toUnit(y); slope.log = -slope.log; return x; },
  }),
  softplus: () => ({
    params: 0,
    encode(x) { slope.log = logSigmoid(x); return softplus(x); },
    decode(y) { slope.log = Math.log(-Math.expm1(-y)); return y + slope.log; },
  }),
  exp: () => ({
    params: 0,
    encode(x) { slope.log = x; return Math.exp(x); },
    decode(y) { slope.log = Math.log(y); return slope.log; },
  }),
  log: ({ least }) => ({
    params: 0,
    encode(x) { const y = Math.log(x < least ? least : x); slope.log = -y; return y; },
    decode(y) { slope.log = -y; return Math.exp(y); },
  }),
  tanh: () => ({
    params: 0,
    encode(x) { slope.log = 2 * (Math.LN2 - x - softplus(-2 * x)); return Math.tanh(x); },
    decode(y) { slope.log = Math.log1p(-y) + Math.log1p(y); return Math.atanh(y); },
  }),
};

function makeScalar(node) { return SCALARS[node.kind](node); }

function toUnit(x) { slope.log = logSigmoid(x) + logSigmoid(-x); return sigmoid(x); }
function fromUnit(y) { slope.log = Math.log(y) + Math.log1p(-y); return Math.log(y) - Math.log1p(-y); }

/** The monotone rational-quadratic spline (arXiv 1906.04032); parameters are widths, heights and inner slopes. */
function makeSpline({ bins, tail, min_bin: minBin, min_slope: minSlope }) {
  const unit = Math.log(Math.expm1(1));
  const width = new Float64Array(bins), height = new Float64Array(bins);
  const bin = { x0: 0, w: 0, y0: 0, h: 0, d0: 0, d1: 0 };

  function sizes(raw, at, step, out) {
    let top = -Infinity, sum = 0;
    for (let i = 0; i < bins; i++) top = Math.max(top, raw[at + i * step]);
    for (let i = 0; i < bins; i++) { out[i] = Math.exp(raw[at + i * step] - top); sum += out[i]; }
    const share = (1 - minBin * bins) / sum;
    for (let i = 0; i < bins; i++) out[i] = 2 * tail * (minBin + share * out[i]);
  }

  function find(value, raw, at, step, byHeight) {
    sizes(raw, at, step, width);
    sizes(raw, at + bins * step, step, height);
    const along = byHeight ? height : width;
    let x0 = -tail, y0 = -tail, k = 0, edge = -tail + along[0];
    while (k < bins - 1 && value >= edge) { x0 += width[k]; y0 += height[k]; k++; edge += along[k]; }
    const inner = (i) => minSlope + (1 - minSlope) * softplus(raw[at + (2 * bins + i) * step] + unit);
    bin.x0 = x0; bin.w = width[k]; bin.y0 = y0; bin.h = height[k];
    bin.d0 = k === 0 ? 1 : inner(k - 1);
    bin.d1 = k === bins - 1 ? 1 : inner(k);
  }

  const within = (t) => Math.min(Math.max(t, 0), 1);

  function logSlope(t, s, d0, d1) {
    const u = t * (1 - t);
    return 2 * Math.log(s) + Math.log(d1 * t * t + 2 * s * u + d0 * (1 - t) * (1 - t))
      - 2 * Math.log(s + (d0 + d1 - 2 * s) * u);
  }

  return {
    params: 3 * bins - 1,
    encode(x, raw, at, step) {
      if (!(Math.abs(x) < tail)) { slope.log = 0; return x; }
      find(x, raw, at, step, false);
      const { x0, w, y0, h, d0, d1 } = bin, s = h / w, t = within((x - x0) / w), u = t * (1 - t);
      slope.log = logSlope(t, s, d0, d1);
      return y0 + (h * (s * t * t + d0 * u)) / (s + (d0 + d1 - 2 * s) * u);
    },
    decode(y, raw, at, step) {
      if (!(Math.abs(y) < tail)) { slope.log = 0; return y; }
      find(y, raw, at, step, true);
      const { x0, w, y0, h, d0, d1 } = bin, s = h / w, v = within((y - y0) / h), bend = v * (d0 + d1 - 2 * s);
      const a = s - d0 + bend, b = d0 - bend, c = -s * v;
      const t = within((-2 * c) / (b + Math.sqrt(Math.max(b * b - 4 * a * c, 1e-20))));
      slope.log = logSlope(t, s, d0, d1);
      return x0 + w * t;
    },
  };
}
