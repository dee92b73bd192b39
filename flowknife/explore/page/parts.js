// Parts that every page has: elements, controls, what is known of trust, and rows that the reader brings.

/** A new element; text goes in as text, so that no name can be markup. */
function element(tag, properties = {}, parent = null, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  for (const child of children) made.append(child);
  if (parent) parent.append(made);
  return made;
}

function section(title, text, parent = document.querySelector("main")) {
  const made = element("section", {}, parent);
  if (title) element("h2", { textContent: title }, made);
  if (text) element("p", { textContent: text }, made);
  return made;
}

function button(text, parent, act) {
  const made = element("button", { type: "button", textContent: text }, parent);
  made.addEventListener("click", act);
  return made;
}

let controls = 0;
const labelled = (text, control, parent) => {
  control.id = `control-${controls++}`;
  const box = element("div", { className: "control" }, parent);
  element("label", { textContent: text, htmlFor: control.id }, box);
  box.append(control);
  return box;
};

/** A slider with its value beside it; `changed` is called with the number. */
function slider(text, parent, { low, high, value, step = (high - low) / 200, show = short }, changed) {
  const input = element("input", { type: "range", min: low, max: high, step });
  input.value = value;
  const box = labelled(text, input, parent), output = element("output", { textContent: show(value) }, box);
  const set = (v) => { input.value = v; output.textContent = show(v); };
  input.addEventListener("input", () => { output.textContent = show(+input.value); changed(+input.value); });
  return { set, get value() { return +input.value; } };
}

function checkbox(text, parent, checked, changed) {
  const input = element("input", { type: "checkbox", checked });
  labelled(text, input, parent).classList.add("check");
  input.addEventListener("change", () => changed(input.checked));
  return input;
}

function choice(text, parent, names, chosen, changed) {
  const select = element("select");
  names.forEach((name, i) => element("option", { value: i, textContent: name, selected: i === chosen }, select));
  labelled(text, select, parent);
  select.addEventListener("change", () => changed(+select.value));
  return select;
}

/** A table of words and numbers; the first row is its head. */
function table(rows, parent, mark = () => "") {
  const wide = element("div", { className: "wide", tabIndex: 0 }, parent);
  wide.setAttribute("role", "group");
  wide.setAttribute("aria-label", "table");
  const made = element("table", {}, wide), head = element("tr", {}, element("thead", {}, made));
  for (const name of rows[0]) element("th", { scope: "col", textContent: name }, head);
  const body = element("tbody", {}, made);
  rows.slice(1).forEach((row, i) => {
    const line = element("tr", { className: mark(i) }, body);
    for (const cell of row) element("td", { textContent: typeof cell === "number" ? short(cell, 4) : cell }, line);
  });
  return wide;
}

/** Bars of shares, 0 to 1, with their names; `set` moves them. */
function bars(parent, names, shades) {
  const list = element("dl", { className: "bars" }, parent);
  const rows = names.map((name, i) => {
    element("dt", { textContent: clipped(name, 24) }, list);
    const line = element("dd", {}, list), bar = element("span", { className: "bar" }, line);
    bar.style.background = shades(i);
    return { bar, words: element("span", { className: "words" }, line) };
  });
  return (shares, words) => rows.forEach(({ bar, words: text }, i) => {
    bar.style.width = `${100 * Math.min(Math.max(shares[i], 0), 1) * 0.7}%`;
    text.textContent = words(i);
  });
}

const shareText = (p) => (p < 0.001 ? "< 0.001" : p > 0.999 ? "> 0.999" : short(p, 3));

const pText = (p) => (p < 0.001 ? "p < 0.001" : `p = ${short(p, 2)}`);

/** A sentence on a p-value, kept where the thing is that it is about. */
function verdict(parent) {
  const made = element("p", { className: "verdict" }, parent);
  made.setAttribute("role", "status");
  return (p, alpha, good, bad, none) => {
    made.className = `verdict ${p === null ? "unknown" : p < alpha ? "bad" : "good"}`;
    made.textContent = p === null ? none : `${p < alpha ? bad : good} (${pText(p)}${p < alpha ? `, below ${short(alpha)}` : ""})`;
  };
}

/** Say at the top of the page that something failed. */
function trouble(error) {
  const place = document.getElementById("trouble") || element("p", { id: "trouble", className: "verdict bad" }, document.querySelector("header"));
  place.setAttribute("role", "alert");
  place.textContent = error && error.message ? error.message : String(error);
}

const cautions = [];
let doubt = ""; // what is said there

/** A line beside numbers that a failed check makes doubtful; empty unless one has failed. */
function caution(parent) { cautions.push(element("p", { className: "caution", textContent: doubt }, parent)); }

/** What a p-value beside this is. */
function meaning(parent, held, alpha, calibrated = true) {
  if (calibrated) element("p", { className: "note", textContent: `p is the share of held-out ${held}; below ${short(alpha)} it is flagged.` }, parent);
}

/** The top of the page: what this is, and whether it can be trusted; a live page learns that later. */
function heading(page) {
  const header = document.querySelector("header");
  element("h1", { textContent: page.title }, header);
  element("p", { className: "lead", textContent: page.lead }, header);
  const box = element("details", { className: "trust" }, header), summary = element("summary", {}, box);
  summary.setAttribute("role", "status");
  const trusted = ({ checks, flagging, partial }) => {
    const failed = checks.filter((check) => !check.passed);
    const words = !checks.length ? "Nothing was held out, so this model could not be checked."
      : failed.length ? `${failed.length} of ${checks.length} checks failed: do not trust this model.`
        : `All ${checks.length} checks on held-out data passed.`;
    box.className = `trust ${checks.length && !failed.length && !partial ? "good" : "bad"}`;
    summary.textContent = partial ? `${partial} ${words}` : words;
    const list = element("ul", { className: "failed" });
    for (const c of failed) element("li", { textContent: `${c.name}: ${short(c.value)}, at most ${short(c.limit)}${c.note ? `: ${c.note}` : ""}` }, list);
    summary.after(...(failed.length ? [list] : []), element("p", { textContent: flagging }));
    if (checks.length) {
      const rows = [...failed, ...checks.filter((check) => check.passed)].map((c) => [c.name, c.value, c.limit, c.passed ? "passed" : "FAILED"]);
      more.firstChild.after(table([["Check", "Value", "At most", ""], ...rows], more));
    }
    more.hidden = !checks.length && !page.metrics.length;
    more.open = !failed.length;
    if (failed.length) box.open = true;
    doubt = failed.length ? `Caution: this model failed ${failed.map((check) => `“${check.name}”`).slice(0, 2).join(" and ")}${failed.length > 2 ? ` and ${failed.length - 2} more` : ""}.` : partial;
    document.body.classList.toggle("doubted", doubt !== "");
    for (const place of cautions) place.textContent = doubt;
  };
  const more = element("details", { className: "more" }, box);
  element("summary", { textContent: "All checks, and what was measured" }, more);
  if (page.metrics.length) table([["Measured", "Value", "Unit"], ...page.metrics], more);
  summary.textContent = "The checks on held-out data are under way.";
  if (page.trust) trusted(page.trust);
  return trusted;
}

// -- rows that the reader brings --------------------------------------------------------------------------------------

/** Rows of text as columns of numbers, by the names in the first line or in the order of `names`. */
function parseRows(text, names) {
  const lines = text.split(/\r?\n/).filter((line) => line.trim());
  if (!lines.length) throw new Error("got no rows; expected one row of numbers in each line");
  const mark = ["\t", ";", ","].find((m) => lines[0].includes(m)) || /\s+/;
  const cells = (line) => line.trim().split(mark).map((cell) => cell.trim().replace(/^"(.*)"$/, "$1"));
  const head = cells(lines[0]), named = head.some((cell) => cell !== "" && Number.isNaN(Number(cell)));
  const places = names.map((name, j) => (named ? head.indexOf(name) : j));
  const missing = names.filter((_, j) => places[j] < 0 || (!named && places[j] >= head.length));
  if (missing.length) throw new Error(`got the columns ${head.slice(0, 8).join(", ")}; expected ${names.join(", ")}`);
  const body = lines.slice(named ? 1 : 0), values = new Float64Array(body.length * names.length);
  body.forEach((line, row) => {
    const found = cells(line);
    places.forEach((place, j) => {
      const v = found[place] === undefined || found[place] === "" ? NaN : Number(found[place]);
      if (!Number.isFinite(v)) throw new Error(`got ${found[place] || "nothing"} as ${names[j]} of row ${row + 1}; expected a number`);
      values[row * names.length + j] = v;
    });
  });
  return { values, rows: body.length };
}

const MOST_ROWS = 5000;

/** A place to paste or drop rows; `answer(values, rows, place)` shows what the model says of them. */
function dropBox(parent, names, example, answer, read = (text) => parseRows(text, names)) {
  const box = element("div", { className: "drop" }, parent);
  const area = element("textarea", { rows: 4, spellcheck: false, value: example });
  labelled(`Rows of ${names.length > 6 ? `${names.length} columns` : names.join(", ")}; paste them, or drop a CSV file here`, area, box);
  const line = element("div", { className: "controls" }, box), file = element("input", { type: "file", accept: ".csv,.tsv,.txt,text/csv" });
  button("Evaluate", line, () => run());
  labelled("File", file, line);
  const place = element("div", { className: "answer" }, box);
  place.setAttribute("aria-live", "polite");
  const run = latest(async () => {
    const found = element("div");
    try {
      const { values, rows } = await read(area.value);
      const width = values.length / rows;
      if (rows > MOST_ROWS) element("p", { textContent: `The first ${MOST_ROWS} of ${rows} rows.` }, found);
      const count = Math.min(rows, MOST_ROWS);
      await answer(values.subarray(0, count * width), count, found);
    } catch (error) {
      element("p", { className: "verdict bad", textContent: error.message }, found);
    }
    place.replaceChildren(found);
  });
  const load = async (from) => { if (from) { area.value = (await from.text()).slice(0, 2 ** 21); run(); } };
  file.addEventListener("change", () => load(file.files[0]));
  box.addEventListener("dragover", (event) => { event.preventDefault(); box.classList.add("over"); });
  box.addEventListener("dragleave", () => box.classList.remove("over"));
  box.addEventListener("drop", (event) => { event.preventDefault(); box.classList.remove("over"); load(event.dataTransfer.files[0]); });
  return run();
}
