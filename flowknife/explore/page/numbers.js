"use strict";
// Arrays of numbers are Float64Array, row after row.

// -- matrices ---------------------------------------------------------------------------------------------------------

/** The product as WebAssembly (`_kernel.py`) and its memory; null where a browser has none. */
let kernel = null;

function startKernel(bytes) {
  try {
    const memory = new WebAssembly.Memory({ initial: 16 });
    const { product } = new WebAssembly.Instance(new WebAssembly.Module(bytes), { m: { m: memory } }).exports;
    kernel = { memory, product, view: new Float64Array(memory.buffer), used: 0, x: null, out: null };
  } catch {
    kernel = null;
  }
}

/** A place for so many numbers in the kernel's memory. */
function placeFor(count) {
  const start = kernel.used;
  kernel.used += count + (count % 2);
  const missing = kernel.used * 8 - kernel.memory.buffer.byteLength;
  if (missing > 0) {
    kernel.memory.grow(Math.ceil(missing / 65536) + 16);
    kernel.view = new Float64Array(kernel.memory.buffer);
  }
  return { start, count };
}

/** Weights (k, m) in pairs of columns, each pair contiguous: one pair then serves all rows from the cache. */
function packed(weight, inputs, outputs) {
  const data = new Float64Array(inputs * (outputs + (outputs % 2)));
  for (let i = 0; i < inputs; i++) {
    for (let j = 0; j < outputs; j++) data[(j >> 1) * 2 * inputs + 2 * i + (j & 1)] = weight[i * outputs + j];
  }
  const place = kernel && inputs * outputs >= 64 ? placeFor(data.length) : null;
  if (place) kernel.view.set(data, place.start);
  return { data, inputs, outputs, place };
}

/** out += x w, for n rows x. */
function addProduct(x, n, w, out) {
  const { inputs: k, outputs: m } = w;
  if (!w.place || n < 8) { addPlainly(x, n, w, out); return; }
  const even = m + (m % 2), rows = n + ((4 - (n % 4)) % 4);
  if (!kernel.x || kernel.x.count < rows * k) kernel.x = placeFor(rows * k);
  if (!kernel.out || kernel.out.count < rows * even) kernel.out = placeFor(rows * even);
  const { view } = kernel, from = kernel.out.start;
  view.set(x, kernel.x.start);
  kernel.product(kernel.x.start * 8, rows, k, w.place.start * 8, even, from * 8);
  if (m === even) {
    const found = view.subarray(from, from + n * m);
    for (let i = 0; i < found.length; i++) out[i] += found[i];
  } else for (let row = 0, to = 0; row < n; row++) for (let j = 0; j < m; j++) out[to++] += view[from + row * even + j];
}

/** The same without the kernel; four rows and two columns at a time, whose eight sums stay in registers. */
function addPlainly(x, n, w, out) {
  const { data, inputs: k, outputs: m } = w;
  for (let j = 0; j < m; j += 2) {
    const column = j * k, both = j + 1 < m;
    let row = 0;
    for (; row + 4 <= n; row += 4) {
      let a0 = 0, a1 = 0, b0 = 0, b1 = 0, c0 = 0, c1 = 0, d0 = 0, d1 = 0;
      let a = row * k, b = a + k, c = b + k, d = c + k, at = column;
      for (let i = 0; i < k; i++) {
        const w0 = data[at++], w1 = data[at++], p = x[a++], q = x[b++], r = x[c++], s = x[d++];
        a0 += p * w0; a1 += p * w1; b0 += q * w0; b1 += q * w1;
        c0 += r * w0; c1 += r * w1; d0 += s * w0; d1 += s * w1;
      }
      const to = row * m + j;
      out[to] += a0; out[to + m] += b0; out[to + 2 * m] += c0; out[to + 3 * m] += d0;
      if (both) { out[to + 1] += a1; out[to + m + 1] += b1; out[to + 2 * m + 1] += c1; out[to + 3 * m + 1] += d1; }
    }
    for (; row < n; row++) {
      let a0 = 0, a1 = 0, at = column;
      for (let i = row * k; i < (row + 1) * k; i++) { a0 += x[i] * data[at++]; a1 += x[i] * data[at++]; }
      out[row * m + j] += a0;
      if (both) out[row * m + j + 1] += a1;
    }
  }
}

/** The row `start` n times; or, if it has n rows already, a copy of them. */
function rowsOf(start, n, width) {
  const out = new Float64Array(n * width);
  if (start.length === out.length) { out.set(start); return out; }
  for (let row = 0; row < n; row++) out.set(start, row * width);
  return out;
}

/** Some columns of rows. */
function columnsOf(x, n, width, places) {
  const out = new Float64Array(n * places.length);
  for (let row = 0, to = 0; row < n; row++) for (let j = 0; j < places.length; j++) out[to++] = x[row * width + places[j]];
  return out;
}

// -- special functions ------------------------------------------------------------------------------------------------

const LOG_2PI = Math.log(2 * Math.PI);

const softplus = (x) => (x > 0 ? x + Math.log1p(Math.exp(-x)) : Math.log1p(Math.exp(x)));
const logSigmoid = (x) => -softplus(-x);
const sigmoid = (x) => (x > 0 ? 1 / (1 + Math.exp(-x)) : 1 - 1 / (1 + Math.exp(x)));

/** The probability below x of N(0, 1): a series near the middle, a continued fraction in the tails. */
function normalBelow(x) {
  const a = Math.abs(x);
  const density = Math.exp(-0.5 * x * x - 0.5 * LOG_2PI);
  let tail;
  if (a < 3) {
    let term = a, sum = a;
    for (let i = 3; term > 1e-17 * sum; i += 2) { term *= (a * a) / i; sum += term; }
    tail = 0.5 - density * sum;
  } else {
    let fraction = a;
    for (let i = 60; i > 0; i--) fraction = a + i / fraction;
    tail = density / fraction;
  }
  return x < 0 ? tail : 1 - tail;
}

const ratio = (top, bottom, x) => top.reduce((s, c) => s * x + c, 0) / bottom.reduce((s, c) => s * x + c, 0);

/** The inverse of `normalBelow`: Acklam's rational approximation, and one step of Halley's method. */
function normalScore(p) {
  let x;
  if (p < 0.02425 || p > 0.97575) {
    const q = Math.sqrt(-2 * Math.log(Math.min(p, 1 - p)));
    x = ratio(
      [-7.784894002430293e-3, -0.3223964580411365, -2.400758277161838, -2.549732539343734, 4.374664141464968,
        2.938163982698783],
      [7.784695709041462e-3, 0.3224671290700398, 2.445134137142996, 3.754408661907416, 1], q);
    if (p > 0.5) x = -x;
  } else {
    const q = p - 0.5;
    x = q * ratio(
      [-39.69683028665376, 220.9460984245205, -275.9285104469687, 138.357751867269, -30.66479806614716,
        2.506628277459239],
      [-54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972, -13.28068155288572, 1], q * q);
  }
  const step = (normalBelow(x) - p) * Math.exp(0.5 * x * x + 0.5 * LOG_2PI);
  return x - step / (1 + 0.5 * x * step);
}

function logSumExp(values) {
  const top = Math.max(...values);
  if (!Number.isFinite(top)) return top;
  let sum = 0;
  for (const value of values) sum += Math.exp(value - top);
  return top + Math.log(sum);
}

/** How many numbers of an ascending array are below `value`, or at most `value` with `right`. */
function searchSorted(sorted, value, right = false) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value || (right && sorted[middle] === value)) low = middle + 1;
    else high = middle;
  }
  return low;
}

// -- activations ------------------------------------------------------------------------------------------------------

/** A smooth function by linear pieces between -8 and 8, `low` and `high` beyond; the error is below 4e-7. */
function tabulated(f, low, high) {
  const steps = 512, count = 16 * steps;
  const table = new Float64Array(2 * count); // the value at the start of each piece, and its rise
  for (let i = 0; i < count; i++) {
    table[2 * i] = f(i / steps - 8);
    table[2 * i + 1] = f((i + 1) / steps - 8) - table[2 * i];
  }
  return (x) => {
    for (let i = 0; i < x.length; i++) {
      const v = x[i];
      if (v > -8 && v < 8) {
        const t = (v + 8) * steps, j = t | 0;
        x[i] = table[2 * j] + (t - j) * table[2 * j + 1];
      } else x[i] = v > 0 ? high(v) : v <= -8 ? low(v) : v; // NaN stays
    }
  };
}

const applied = (f) => (x) => { for (let i = 0; i < x.length; i++) x[i] = f(x[i]); };
const GELU = Math.sqrt(2 / Math.PI);
const geluTanh = (x) => Math.tanh(GELU * (x + 0.044715 * x ** 3));

/** Each acts in place. */
const ACTIVATIONS = {
  gelu: tabulated((x) => 0.5 * x * (1 + geluTanh(x)), () => 0, (x) => x),
  relu: applied((x) => Math.max(x, 0)),
  silu: applied((x) => x * sigmoid(x)),
  tanh: applied(Math.tanh),
  elu: applied((x) => (x > 0 ? x : Math.expm1(x))),
};

// -- random numbers ---------------------------------------------------------------------------------------------------

/** Draws from a seed: the same ones every time, so that a picture moves only where something was changed. */
class Random {
  constructor(seed) { this.state = seed >>> 0; this.spare = null; }

  /** Uniform in (0, 1); mulberry32. */
  uniform() {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let t = this.state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (((t ^ (t >>> 14)) >>> 0) + 0.5) / 4294967296;
  }

  /** N(0, 1), by Box and Muller's method. */
  normal() {
    if (this.spare !== null) { const spare = this.spare; this.spare = null; return spare; }
    const radius = Math.sqrt(-2 * Math.log(this.uniform())), angle = 2 * Math.PI * this.uniform();
    this.spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  normals(count) { return Float64Array.from({ length: count }, () => this.normal()); }
}
