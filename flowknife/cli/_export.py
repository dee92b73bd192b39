"""`flowknife export`: a model for programs without flowknife."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flowknife._progress import is_silenced
from flowknife.cli._app import Run, app, say, verb


@verb(
    app,
    "export",
    "flowknife export runs/points points-model",
    "flowknife export runs/points points-onnx --format onnx",
)
def _export(
    run: Run,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The folder to write.")],
    format: Annotated[
        Literal["stablehlo", "onnx"], typer.Option(help="For JAX, or for ONNX by jax2onnx (in a separate environment).")
    ] = "stablehlo",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Write log_prob, sample and encode for programs without flowknife.

    PATH contains the programs as StableHLO and a model.py that runs them with JAX and NumPy only, with bitwise equal
    results. The ONNX format has no sample, and numbers agree to 1e-5.
    """
    from flowknife.apps import load

    fitted: Any = load(run)
    folder = fitted.export(path, format=format, overwrite=overwrite)
    say(f"wrote {folder}")
    if format == "stablehlo" and not is_silenced():
        typer.secho("next", bold=True)
        what = "images.npy" if fitted.record.data.kind == "images" else "rows.npy"
        typer.echo(f"  python {folder / 'model.py'} encode {what} --out latents.npy")
