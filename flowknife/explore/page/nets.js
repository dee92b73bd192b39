// Networks: each is a function (x, n, cond) -> rows of the output. `cond` is { data, rows, size } or null, with one row
// for all x or one for each.

function makeDense(node) {
  const inputs = node.weight.length / node.bias.length;
  return { weight: packed(node.weight, inputs, node.bias.length), bias: node.bias, outputs: node.bias.length };
}

function runDense(layer, x, n) {
  const out = rowsOf(layer.bias, n, layer.outputs);
  addProduct(x, n, layer.weight, out);
  return out;
}

/** The first layer, of x and of the condition; what one condition adds to all rows is computed once. */
function makeFirst(node) {
  const layer = makeDense(node);
  const given = node.given && packed(node.given, node.given.length / layer.outputs, layer.outputs);
  return (x, n, cond) => {
    if (!given) return runDense(layer, x, n);
    const start = rowsOf(layer.bias, cond.rows, layer.outputs);
    addProduct(cond.data, cond.rows, given, start);
    const out = rowsOf(start, n, layer.outputs);
    addProduct(x, n, layer.weight, out);
    return out;
  };
}

const NETS = {
  mlp(node) {
    const first = makeFirst(node.layers[0]), others = node.layers.slice(1).map(makeDense);
    const activate = ACTIVATIONS[node.activation];
    return (x, n, cond) => {
      x = first(x, n, cond);
      for (const layer of others) { activate(x); x = runDense(layer, x, n); }
      return x;
    };
  },

  residual(node) {
    const first = makeFirst(node.first), last = makeDense(node.last), activate = ACTIVATIONS[node.activation];
    const blocks = node.blocks.map((pair) => pair.map(makeDense));
    return (x, n, cond) => {
      x = first(x, n, cond);
      for (const [one, two] of blocks) {
        const inner = x.slice();
        activate(inner);
        const hidden = runDense(one, inner, n);
        activate(hidden);
        for (let row = 0, i = 0; row < n; row++) for (let j = 0; j < two.outputs; j++) x[i++] += two.bias[j];
        addProduct(hidden, n, two.weight, x);
      }
      activate(x);
      return runDense(last, x, n);
    };
  },

  embedding(node) {
    const { knots, scores, mean } = node, size = mean.length, count = knots.length / size;
    const axes = node.axes && packed(node.axes, size, node.axes.length / size);
    const net = node.net && makeNet(node.net);
    return (y, n) => {
      const score = new Float64Array(n * size);
      for (let i = 0; i < score.length; i++) {
        const column = i % size;
        const own = knots.subarray(column * count, (column + 1) * count);
        score[i] = interpolate(y[i], own, scores.subarray(column * count, (column + 1) * count)) - mean[column];
      }
      let fixed = score;
      if (axes) { fixed = new Float64Array(n * axes.outputs); addProduct(score, n, axes, fixed); }
      return net ? joined([fixed, net(score, n, null)], n) : fixed;
    };
  },
};

function makeNet(node) { return NETS[node.kind](node); }

/** Rows side by side. */
function joined(parts, n) {
  const widths = parts.map((part) => part.length / n), width = widths.reduce((a, b) => a + b, 0);
  const out = new Float64Array(n * width);
  let start = 0;
  parts.forEach((part, p) => {
    for (let row = 0; row < n; row++) out.set(part.subarray(row * widths[p], (row + 1) * widths[p]), row * width + start);
    start += widths[p];
  });
  return out;
}

/** Piecewise linear through the knots, continued as lines, at most 3 beyond the outermost scores. */
function interpolate(y, knots, scores) {
  const last = knots.length - 1;
  const slope = (i) => (knots[i + 1] > knots[i] ? (scores[i + 1] - scores[i]) / (knots[i + 1] - knots[i]) : 0);
  const i = Math.min(Math.max(searchSorted(knots, y, true), 1), last) - 1;
  const between = scores[i] + (y - knots[i]) * slope(i);
  const inside = y < knots[0] ? scores[0] : y > knots[last] ? scores[last] : between;
  const beyond = slope(0) * Math.min(y - knots[0], 0) + slope(last - 1) * Math.max(y - knots[last], 0);
  return inside + Math.min(Math.max(beyond, -3), 3);
}
