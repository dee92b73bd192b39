"""`flowknife fit`: from data to a run directory."""

import difflib
import functools
import json
import shlex
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from flowknife._files import CHECKPOINTS, is_checkpoints, is_partial, is_run
from flowknife._interrupts import finish, until_interrupted
from flowknife._progress import is_silenced
from flowknife.cli._again import Source, again, configuration_of
from flowknife.cli._app import (
    DropInvalid,
    Explained,
    Group,
    app,
    arguments,
    say,
    show,
    verb,
    with_examples,
    with_units,
)
from flowknife.cli._distributed import with_cluster
from flowknife.cli._files import remove_checkpoints, run_to_write
from flowknife.errors import InputError, Interrupted

SETTINGS = Path(__file__).with_name("settings.json")
"""Default and meaning of every setting of every application, generated from the configurations by `make settings`.

A help text should not wait for JAX, which the configurations import.
"""

Out = Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="The run directory to write.")]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", metavar="NAME", help="A named configuration, see flowknife recipes.")
]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="Settings in YAML, which override the recipe.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="One setting, such as train.minutes=5, which overrides all others; may be repeated.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing run.")]
Track = Annotated[
    list[str] | None,
    typer.Option(metavar="KIND:PLACE", help="Track the fit: tensorboard:DIR, mlflow:URI or mlflow:URI#EXPERIMENT."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume an interrupted fit from RUN/checkpoints.")]

fit = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None)
app.add_typer(
    fit,
    name="fit",
    help=with_examples(
        "Fit a model to data and write a run directory.",
        "flowknife fit density points.csv --out runs/points",
        "flowknife fit images data/train --out runs/cats --set train.minutes=10",
        "flowknife fit classify flowers.csv --out runs/flowers --label species",
        "flowknife fit invert kinematics --out runs/arm",
        "flowknife fit images data/train --out runs/cats --resume",
        "flowknife fit --from runs/points --out runs/again",
        "flowknife fit images data/train --out runs/cats --resume --distributed auto",
    ),
)
fit.callback(invoke_without_command=True)(again)


def _fits(application: str, *examples: str) -> Callable[[Callable], Callable]:
    """Register the verb of an application; its docstring, the examples and its settings are its help."""

    class WithSettings(TyperCommand):
        def format_epilog(self, ctx: Any, formatter: Any) -> None:
            settings = json.loads(SETTINGS.read_text(encoding="utf-8"))[application]
            with formatter.section("Settings, for --set and --config (chosen: by the fit, from the data)"):
                formatter.write_dl([(f"{key}={default}", meaning) for key, (default, meaning) in settings.items()])

    def register(function: Callable) -> Callable:
        @functools.wraps(function)
        def with_claim(**given: Any) -> None:
            run, overwrite, resume = given["out"], given["overwrite"], given["resume"]
            checkpoints = run / CHECKPOINTS
            if resume and not overwrite and is_run(run) and not is_partial(run) and not is_checkpoints(checkpoints):
                say(f"{run} holds a finished run: there is nothing to resume")
                return
            if _is_another():
                function(**given)
                return
            with run_to_write(run, overwrite, given["data"], given["config"], resume=resume):
                try:
                    function(**given)
                except KeyboardInterrupt as stop:
                    done = str(stop) if isinstance(stop, Explained) else ""
                    if not is_checkpoints(checkpoints):
                        raise Explained(done or "nothing was written, since training had not begun") from None
                    resume_with = f"to resume: {_resume_command()}"
                    raise Explained(f"{done}; {resume_with}" if done else resume_with) from None

        return verb(fit, application, *examples, cls=WithSettings)(with_cluster(with_claim))

    return register


@_fits(
    "density",
    "flowknife fit density points.csv --out runs/points",
    "flowknife fit density points.csv --out runs/p --set train.minutes=2 -s seed=1",
    "flowknife fit density points.npy --out runs/p --config f.yaml --drop-invalid",
    "flowknife fit density harvest.csv --given rain,soil --out runs/yield",
)
def _density(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A table: .csv, .tsv, .npy, .npz or .parquet.")],
    out: Out,
    given: Annotated[
        str | None,
        typer.Option(metavar="COLUMN,COLUMN", help="Learn the density of the other columns given these."),
    ] = None,
    recipe: RecipeName = None,
    config: Config = None,
    settings: Set = None,
    drop_invalid: DropInvalid = False,
    overwrite: Overwrite = False,
    resume: Resume = False,
    source: Source = None,
    track: Track = None,
) -> None:
    """Fit a density to the rows of a table.

    The rows are on the left, a standard normal latent on the right. The model gives samples, densities and an anomaly
    score.
    """
    from flowknife.apps import DensityConfig, density

    chosen = _configured(DensityConfig, "density", recipe, config, settings, source)
    columns = None if given is None else [name.strip() for name in given.split(",")]
    found = until_interrupted(
        lambda: density(data, chosen, given=columns, drop_invalid=drop_invalid, **_stored(out, resume, track))
    )
    # conditions are read from a table, here the training data
    draws = f"-n 1 --given {shlex.quote(data)}" if columns else "-n 100"
    _keep(found, out, _sample_and_score("samples.csv", f"new{Path(data).suffix}", draws), recipe)


@_fits(
    "images",
    "flowknife fit images data/train --out runs/cats",
    "flowknife fit images data/train --out runs/cats --set image_size=64 -s augment.rotation=10",
    "flowknife fit images data/train --out runs/cats --recipe cats-64 --set train.minutes=15",
    "flowknife fit images s3://bucket/train --out runs/cats",
    "flowknife fit images data/breeds --given class --out runs/breeds",
    "flowknife fit images mnist.npz:x_train --out runs/mnist --recipe mnist-28",
)
def _images(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A folder of images, its address, or an .npy or .npz file of them.")
    ],
    out: Out,
    given: Annotated[
        str | None, typer.Option(metavar="class", help="class: learn p(image | class), one folder per class.")
    ] = None,
    recipe: RecipeName = None,
    config: Config = None,
    settings: Set = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    source: Source = None,
    track: Track = None,
) -> None:
    """Fit an image model to a folder of images.

    The image is on the left, one latent per scale on the right. The model gives new images and an anomaly score.

    Unusable files are listed with the reasons in RUN/skipped.csv.
    """
    from flowknife.apps import ImagesConfig, images

    chosen = _configured(ImagesConfig, "images", recipe, config, settings, source)
    found = until_interrupted(lambda: images(data, chosen, given=given, **_stored(out, resume, track)))
    classes = found[0].classes
    draws = "-n 100" + (f" --given {shlex.quote(str(classes[0]))}" if classes else "")
    _keep(found, out, _sample_and_score("samples.png", "new", draws), recipe)


@_fits(
    "classify",
    "flowknife fit classify flowers.csv --out runs/flowers --label species",
    "flowknife fit classify digits --out runs/digits --set train.minutes=5",
    "flowknife fit classify rows.npz --out runs/rows --set law=label",
)
def _classify(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A table with a label column, an .npz file of x and labels, or a folder with one subfolder per class.",
        ),
    ],
    out: Out,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help='The label column of a table; default "label".')
    ] = None,
    recipe: RecipeName = None,
    config: Config = None,
    settings: Set = None,
    drop_invalid: DropInvalid = False,
    overwrite: Overwrite = False,
    resume: Resume = False,
    source: Source = None,
    track: Track = None,
) -> None:
    """Fit a generative classifier to labelled rows or images.

    Rows or images are on the left, their label and a latent on the right. The model gives class probabilities, samples
    of a class, and flags for items of unknown classes. A label may be text; an empty label is unknown.
    """
    from flowknife.apps import ClassifyConfig, classify

    chosen = _configured(ClassifyConfig, "classify", recipe, config, settings, source)
    folder = Path(data).expanduser().is_dir()
    labels, samples = (None, "samples.png") if folder else (label, "samples.csv")
    new = shlex.quote("new" if folder else f"new{Path(data).suffix}")
    found = until_interrupted(
        lambda: classify(data, labels, chosen, drop_invalid=drop_invalid, **_stored(out, resume, track))
    )
    following = (f"sample {{run}} -n 100 --out {samples}", f"classify {{run}} {new} --out classes.csv")
    _keep(found, out, following, recipe)


@_fits(
    "invert",
    "flowknife fit invert kinematics --out runs/arm --set form=partitioned",
    "flowknife fit invert pairs.npz --out runs/mine --set noise=0.1",
    "flowknife fit invert pairs.csv --out runs/mine --parameters mass,speed",
)
def _invert(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A problem by name, a folder of `flowknife simulate`, an .npz file of x and y, or a table.",
        ),
    ],
    out: Out,
    parameters: Annotated[
        str | None, typer.Option(metavar="NAMES", help="The parameter columns of a table, as in a,b,c.")
    ] = None,
    recipe: RecipeName = None,
    config: Config = None,
    settings: Set = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    source: Source = None,
    track: Track = None,
) -> None:
    """Fit the posterior of parameters given an observation.

    One fit is valid for every observation.

    Parameters are on the left, data and a latent on the right. The pairs exist already, or come from the simulator of a
    problem: kinematics, ballistics, gravity, dispersion, two_moons, gaussian_linear.
    """
    from flowknife.apps import InvertConfig, invert
    from flowknife.data.sets import is_set
    from flowknife.problems import PROBLEMS

    chosen = _configured(InvertConfig, "invert", recipe, config, settings, source)
    if data in PROBLEMS:
        if parameters is not None:
            raise InputError(f"got --parameters for the problem {data}, which names its own; try without --parameters")
        found = until_interrupted(lambda: invert(PROBLEMS[data](), config=chosen, **_stored(out, resume, track)))
    elif Path(data).suffix or is_set(data):
        names = [name.strip() for name in parameters.split(",")] if parameters else None
        found = until_interrupted(lambda: invert(config=chosen, pairs=data, names=names, **_stored(out, resume, track)))
    else:
        close = difflib.get_close_matches(data, PROBLEMS, n=1)
        advice = f"; try {close[0]}" if close else ""
        raise InputError(f"got {data!r}; expected a problem ({', '.join(PROBLEMS)}) or a file of pairs{advice}")
    _keep(
        found,
        out,
        ("invert {run} observations.csv -n 1000 --out parameters.csv", "score {run} observations.csv --out scores.csv"),
        recipe,
    )


def _is_another() -> bool:
    """Whether this is one of several processes, but not the first one, which writes the files."""
    if "jax" not in sys.modules:  # joining a cluster imports JAX
        return False
    from flowknife._cluster import is_first

    return not is_first()


def _stored(run: Path, resume: bool, track: list[str] | None) -> dict[str, Any]:
    """The arguments of a fit for checkpoints and tracking."""
    return {"checkpoints": run / CHECKPOINTS, "resume": resume, **({"track": track} if track else {})}


def _resume_command() -> str:
    """The command that resumes this fit."""
    words = [word for word in arguments() if word not in ("--resume", "--overwrite")]
    return shlex.join(["flowknife", *words, "--resume"])


def _configured(
    kind: Any,
    application: str,
    recipe: str | None,
    file: Path | None,
    settings: list[str] | None,
    source: Path | None,
) -> Any:
    from flowknife import recipes
    from flowknife.cli._settings import configured

    for setting in settings or ():
        if "=" not in setting:
            raise typer.BadParameter(
                f"got {setting!r}; expected KEY=VALUE, such as train.minutes=5", param_hint="--set"
            )
    if recipe and source:
        raise InputError(f"got --recipe {recipe} and --from {source}; expected one of them")
    start = recipes.recipe(recipe, application).settings if recipe else None
    if source:
        start = configuration_of(source, application)
    return configured(kind, file, settings or (), start)


def _sample_and_score(samples: str, data: str, draws: str) -> tuple[str, ...]:
    """The verbs to try next; the data to score are named as new data, since scores of training data mean little."""
    return f"sample {{run}} {draws} --out {samples}", f"score {{run}} {shlex.quote(data)} --out scores.csv"


def _keep(found: tuple[Any, bool], run: Path, following: tuple[str, ...], recipe: str | None) -> None:
    """Save a result; print its path, its metrics, the expected metrics and the commands to try next.

    Args:
        found: the result, and whether fitting it was interrupted.
        run: the run directory; a partial run does not replace a complete one, but is written next to it.
        following: verbs to try next.
        recipe: the name of the recipe.

    Raises:
        Explained: after an interruption.
    """
    from flowknife.recipes import RECIPES
    from flowknife.report import about

    fitted, interrupted = found
    if _is_another():
        if interrupted:
            raise KeyboardInterrupt
        return
    training = fitted.record.training
    if training.partial and is_run(run) and not is_partial(run):
        run = next(place for i in count(1) if not (place := run.with_name(f"{run.name}-partial-{i}")).exists())

    def write():
        fitted.save(run, recipe=recipe)
        if not training.partial:
            remove_checkpoints(run)

    try:
        finish(write, interrupted)
    except Interrupted:
        how = f"a partial run: {training.sentence}" if training.partial else "the whole run"
        raise Explained(f"{run} holds {how}") from None
    expected = {"recipe": recipe, "expected": RECIPES[recipe].expected or "not measured"} if recipe else {}
    if is_silenced():
        return
    show(f"{fitted.application}: {run}", {**with_units(fitted), **about(fitted), **expected})
    if fitted.skipped:
        typer.echo(f"  what was skipped, and why: {run / 'skipped.csv'}")
    typer.secho("next", bold=True)
    for words in (*following, "report {run}"):
        typer.echo("  flowknife " + words.replace("{run}", shlex.quote(str(run))))
