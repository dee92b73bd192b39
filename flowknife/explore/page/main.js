// Start: read what is in the page, and build it.

const PAGES = { density: densityPage, classify: classificationPage, invert: inversionPage };

if (typeof document !== "undefined") {
  const page = JSON.parse(document.getElementById("model").textContent);
  startKernel(unpacked(page.kernel));
  heading(page);
  window.explored = PAGES[page.job](page);
  document.documentElement.dataset.ready = "yes";
}
