"""Where settings are documented: written from the configurations by `make settings`, and tested to be up to date."""

import json
from pathlib import Path

from flowknife import apps
from flowknife._settings import described
from flowknife.cli._fit import SETTINGS

ORDER = ("density", "images", "classify", "invert")
CONFIGS = {name: apps.APPLICATIONS[name].settings for name in (*ORDER, *sorted(set(apps.APPLICATIONS) - set(ORDER)))}
PAGE = Path(__file__).parents[1] / "docs" / "settings.md"

HEAD = """# Settings

Every setting of every application, with its default. `make settings` writes this page from the configuration classes.
In Python a setting is a keyword argument, `fk.density(x, width=128, train={"minutes": 5})`; in the shell it is
`--set width=128 --set train.minutes=5`, or a line of a settings file. A default that is shown as *chosen* is open: the
fit chooses the value, and the run records it.
"""


def texts() -> dict[Path, str]:
    """What each file has to contain."""
    all_settings = {name: described(kind) for name, kind in CONFIGS.items()}
    rows = {name: [{key: value} for key, value in settings.items()] for name, settings in all_settings.items()}
    lines = ",\n".join(
        f"  {json.dumps(name)}: {{\n" + ",\n".join(f"    {json.dumps(row)[1:-1]}" for row in rows[name]) + "\n  }"
        for name in rows
    )
    page = [HEAD]
    for name, settings in all_settings.items():
        page.append(f"\n## `fk.{name}`, `{CONFIGS[name].__name__}`\n\n| setting | default | meaning |\n|---|---|---|\n")
        for key, (default, meaning) in settings.items():
            page.append(f"| `{key}` | {'*chosen*' if default == 'chosen' else f'`{default}`'} | {meaning} |\n")
    return {SETTINGS: f"{{\n{lines}\n}}\n", PAGE: "".join(page)}


if __name__ == "__main__":
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
