// Start: read what is in the page, and build it.

const PAGES = { density: densityPage, classify: classificationPage, invert: inversionPage, images: imagesPage };

if (typeof document !== "undefined") start();

async function start() {
  window.addEventListener("unhandledrejection", (event) => { event.preventDefault(); trouble(event.reason); });
  const page = JSON.parse(document.getElementById("model").textContent);
  if (!page.live) startKernel(unpacked(page.kernel));
  const trusted = heading(page);
  try {
    window.explored = await PAGES[page.job](page);
  } catch (error) {
    trouble(error);
  }
  document.documentElement.dataset.ready = "yes";
  if (!page.live) return;
  await window.explored?.first;
  try {
    trusted(await ask("trust", {}, true));
  } finally {
    window.explored?.gallery?.();
  }
}
