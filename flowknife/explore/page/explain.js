// What is odd about a row: its log density, its p-value, and the columns to blame.

/**
 * For every column, how much more likely the row would be with the best other value of that column alone, in nats.
 * @param logProb log densities of n rows
 * @param others for each column the values that are tried
 */
async function blame(row, others, logProb) {
  const size = row.length, count = others[0].length, rows = new Float64Array((size * count + 1) * size);
  rows.set(row);
  for (let j = 0, at = 1; j < size; j++) for (let i = 0; i < count; i++, at++) { rows.set(row, at * size); rows[at * size + j] = others[j][i]; }
  const found = await logProb(rows, size * count + 1), own = Math.max(found[0], -1e30);
  return Array.from({ length: size }, (_, j) => Math.max(0, Math.max(...found.subarray(1 + j * count, 1 + (j + 1) * count)) - own));
}

/** Quantiles of every column of rows, as values to try. */
function triedValues(rows, size, count = 24) {
  return Array.from({ length: size }, (_, j) => {
    const own = Float64Array.from({ length: rows.length / size }, (_, i) => rows[i * size + j]).sort();
    return Array.from({ length: count }, (_, i) => own[Math.round((i / (count - 1)) * (own.length - 1))]);
  });
}

/** The columns to blame in words, the worst first. */
function blamed(gains, names) {
  const order = gains.map((gain, j) => [gain, j]).sort((a, b) => b[0] - a[0]).filter(([gain]) => gain > 1);
  return order.slice(0, 3).map(([gain, j]) => `${names[j]} (+${short(gain, 2)})`).join(", ") || "none alone";
}

const MOST_EXPLAINED = 200;
