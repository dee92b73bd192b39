"""Runs the code of the tutorials and writes their figures and what they print into docs/figures.

Of the models that they fit it makes the first figure of the README, docs/seven-jobs.svg, see docs/animation.py.

    python docs/figures.py [NAME ...]

What the block number i of the tutorial NAME prints goes to docs/figures/NAME-i.txt, where blocks that print nothing are
not counted. `make docs` runs this before the pages are built.
"""

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import animation  # beside this file

DOCS = Path(__file__).resolve().parent
FIGURES = DOCS / "figures"


def blocks(page: Path) -> list[str]:
    """The Python code of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run(page: Path) -> dict[str, object]:
    """Run a page in a folder of its own, and keep its figures and its output; return its names."""
    names: dict[str, object] = {"__name__": "page"}
    printed = 0
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for code in blocks(page):
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(code, str(page), "exec"), names)
            if output.getvalue():
                printed += 1
                text = "\n".join(line.rstrip() for line in output.getvalue().splitlines())
                (FIGURES / f"{page.stem}-{printed}.txt").write_text(text + "\n", encoding="utf-8")
        for figure in Path(folder).glob("*.png"):
            shutil.move(figure, FIGURES / figure.name)
    return names


def main(chosen: list[str]) -> None:
    FIGURES.mkdir(exist_ok=True)
    fitted = {}
    for page in sorted((DOCS / "tutorials").glob("*.md")):
        if not chosen or page.stem in chosen:
            start = time.monotonic()
            names = run(page)
            fitted[page.stem] = next(names[name] for name in ("flow", "model", "posterior") if name in names)
            print(f"{page.stem}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    if fitted.keys() >= animation.JOBS.keys():
        animation.write(fitted)


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "agg")
    main(sys.argv[1:])
