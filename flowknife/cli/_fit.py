"""`flowknife fit`: from data to a run directory."""

import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowknife.cli._app import DropInvalid, app, show, verb, with_examples, with_units
from flowknife.cli._files import require_writable
from flowknife.errors import StorageError

if TYPE_CHECKING:
    from flowknife.apps import Density, Images

Out = Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="The run directory to write.")]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="Settings in YAML, such as train: {minutes: 5}")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="One setting, such as train.minutes=5; may be repeated."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")]

fit = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(
    fit,
    name="fit",
    help=with_examples(
        "Fit a model to data and write a run directory.",
        "flowknife fit density points.csv --out runs/points",
        "flowknife fit images data/train --out runs/cats --set train.minutes=10",
    ),
)


@verb(
    fit,
    "density",
    "flowknife fit density points.csv --out runs/points",
    "flowknife fit density points.csv --out runs/p --set train.minutes=2 -s seed=1",
    "flowknife fit density points.npy --out runs/p --config f.yaml --drop-invalid",
)
def _density(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A table: .csv, .tsv, .npy, .npz or .parquet.")],
    out: Out,
    config: Config = None,
    settings: Set = None,
    drop_invalid: DropInvalid = False,
    overwrite: Overwrite = False,
) -> None:
    """Fit a density to the rows of a table.

    The rows stand on the left, a standard normal latent on the right: samples, densities, and an anomaly score.
    """
    claim(out, overwrite)
    from flowknife.apps import DensityConfig, density

    chosen = _configured(DensityConfig, config, settings)
    _keep(density(data, chosen, drop_invalid=drop_invalid), out, samples="samples.csv", data=data)


@verb(
    fit,
    "images",
    "flowknife fit images data/train --out runs/cats",
    "flowknife fit images data/train --out runs/cats --set image_size=64 -s bits=5",
)
def _images(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A folder of pictures, its subfolders included.")],
    out: Out,
    config: Config = None,
    settings: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Fit an image model to a folder of pictures.

    The image stands on the left, one latent per scale on the right: new pictures, and an anomaly score.

    Files that cannot be used are listed with the reasons in RUN/skipped.csv.
    """
    claim(out, overwrite)
    from flowknife.apps import ImagesConfig, images

    chosen = _configured(ImagesConfig, config, settings)
    _keep(images(data, chosen), out, samples="samples.png", data=data)


def _configured(kind: Any, file: Path | None, settings: list[str] | None) -> Any:
    from flowknife.cli._settings import configured

    for setting in settings or ():
        if "=" not in setting:
            raise typer.BadParameter(
                f"got {setting!r}; expected KEY=VALUE, such as train.minutes=5", param_hint="--set"
            )
    return configured(kind, file, settings or ())


def claim(run: Path, overwrite: bool) -> None:
    """Refuse a run directory that cannot be written or holds anything else, before there is something to lose."""
    ours = {"run.json", "model.safetensors", "history.csv", "skipped.csv", "report.html", "figures", "checkpoints"}
    require_writable(run)
    held = {path.name for path in run.iterdir()} if run.exists() else set()
    if "run.json" in held and not overwrite:
        raise StorageError(f"got {run}, which holds a run; expected a new folder; try another --out or --overwrite")
    if "run.json" not in held and held - ours:
        raise StorageError(f"got {run}, which is not empty and no run; expected a new folder; try another --out")


def _keep(fitted: "Density | Images", run: Path, samples: str, data: str) -> None:
    """Save what was fitted; say where it is, how good it is and what may come next."""
    for stale in ("report.html", "skipped.csv", "figures", "checkpoints"):  # of the run that this one replaces
        shutil.rmtree(run / stale) if (run / stale).is_dir() else (run / stale).unlink(missing_ok=True)
    fitted.save(run)
    show(f"{fitted.application}: {run}", {**with_units(fitted.metrics), **fitted.facts})
    if fitted.facts.get("skipped files"):
        typer.echo(f"  what was skipped, and why: {run / 'skipped.csv'}")
    place = shlex.quote(str(run))
    typer.secho("next", bold=True)
    typer.echo(f"  flowknife sample {place} -n 100 --out {samples}")
    typer.echo(f"  flowknife score {place} {shlex.quote(data)} --out scores.csv")
    typer.echo(f"  flowknife report {place}")
