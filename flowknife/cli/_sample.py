"""The verbs that draw from a run: `sample`, `invert`."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from flowknife.cli._app import DropInvalid, Run, app, say, verb
from flowknife.cli._files import Replace, require_output
from flowknife.cli._images import number_in
from flowknife.cli._kinds import ROWS, Choice, given_in, kind_of, numbered, only_for, tell_left_out
from flowknife.cli._merge import draws_in_shard, is_done, part_file, run_digest, tell_part
from flowknife.cli._shards import ShardText, shard_of
from flowknife.cli._simulate import simulator_in
from flowknife.errors import InputError, counted, printable

Seed = Annotated[int | None, typer.Option(min=0, help="The same seed gives the same draws.")]
Refine = Annotated[
    bool,
    typer.Option("--refine", help="Draw from the exact posterior, if the likelihood is known; posteriors only."),
]
Forward = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.py:NAME", help="With --refine: the noise-free simulator, for a run of your own simulator."
    ),
]


@verb(
    app,
    "sample",
    "flowknife sample runs/points -n 1000 --out new.csv",
    "flowknife sample runs/cats -n 64 --temperature 0.7 --out cats.png",
    "flowknife sample runs/cats -n 64 --temperature z_0=1,z_1=0.7 --prior empirical --out cats.png",
    "flowknife sample runs/digits -n 20 --label 7 --out sevens.png",
    "flowknife sample runs/cats -n 16 --given tabby --out tabbies.png",
    "flowknife sample runs/yield -n 100 --given rain=20,soil=3 --out yields.csv",
    "flowknife sample runs/arm -n 1000 --given observations.csv --out poses.csv",
    "flowknife sample runs/basin -n 1000 --given anomalies.csv --refine --out depths.csv",
)
def _sample(
    run: Run,
    out: Annotated[Path, typer.Option("--out", "-o", help="A table file; for images FILE.png, FILE.npy or a folder.")],
    n: Annotated[int, typer.Option("-n", min=1, help="Number of draws.")] = 16,
    temperature: Annotated[
        str | None,
        typer.Option(
            metavar="T", help="Scale of the latent, default 1, for images 0.7; by name of block as in z_0=1,z_1=0.7."
        ),
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(help="normal, or empirical: a Gaussian fitted to the training latents; images only."),
    ] = None,
    shrink: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Empirical prior: from 0 (as fitted) to 1 (normal); images only."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="The class to draw from; classifiers only.")] = None,
    given: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|VALUES",
            help="The condition: a class of images; conditions of rows, a=1,b=2 or a table; observations.",
        ),
    ] = None,
    refine: Refine = False,
    simulator: Forward = None,
    seed: Seed = None,
    shard: ShardText = None,
    overwrite: Replace = False,
) -> None:
    """Draw new rows or images from a fitted model.

    Images are written as a contact sheet (FILE.png), as an array (FILE.npy), or as files in a new folder. For a table
    of conditions or observations, -n draws are made for each row; conditions are written next to the draws.

    With --shard, a part of the -n draws is made and written to a separate file next to FILE; `flowknife merge FILE`
    joins the parts.
    """
    import numpy as np

    from flowknife.apps import load

    own, total, key = shard_of(shard), n, seed
    source: dict[str, Any] = {
        "verb": "sample",
        "given": given,
        "temperature": temperature,
        "prior": prior,
        "label": label,
        "seed": seed,
    }
    if own is not None:
        whole, out = out, part_file(out, own)
        source |= {"run": run_digest(run), "shrink": shrink}
        n, key = draws_in_shard(whole, own, n, seed, given)
        if not overwrite and is_done(out, own, source | {"n": total}):
            typer.echo(f"{out} holds shard {own} already: there is nothing to draw")
            return
    require_output(out, given, run=run, overwrite=overwrite)
    if prior not in (None, "normal", "empirical"):
        raise InputError(f"got --prior {prior!r}; expected normal or empirical")
    fitted: Any = load(run)
    only_for(["classify"], fitted, label=label)
    only_for(["density", "images", "invert"], fitted, given=given)
    only_for(["images"], fitted, prior=prior, shrink=shrink)
    only_for(["invert"], fitted, refine=refine or None, simulator=simulator)
    options: dict[str, Any] = {"prior": prior, "shrink": shrink}
    options = {name: value for name, value in options.items() if value is not None}
    if temperature is not None:
        options["temperature"] = _temperature(temperature, fitted)
    if fitted.application == "invert":
        if given is None:
            raise InputError("got a posterior and no observation; expected one to explain; try --given FILE")
        if refine and temperature is not None:
            raise InputError("got --temperature with --refine; expected one of them; try without --temperature")
        _explain(_refinable(fitted, refine, simulator), given, out, n, seed, refine=refine, **options)
        return
    if label is not None:
        options["label"] = _class_of(fitted, label)
    kind = kind_of(fitted)
    if given is not None:
        options["given"] = given_in(fitted, given)
    if given is not None and fitted.application == "density":
        options["given"], n = _each(fitted, options["given"], n)
    write = kind.writer(fitted, out, n)
    draw = fitted.sample if fitted.encoding is None else fitted.sample_numbers
    drawn = draw(n, key=key, **options)
    write(np.column_stack([drawn, options["given"]]) if kind is ROWS and given is not None else drawn)
    if own is not None:
        tell_part(out, own, source | {"n": total}, total, n, {})
    say(f"wrote {counted(n, kind.word.removesuffix('s'))} to {out}")


def _each(fitted, given, n):
    """Conditions for n draws per row of conditions, and the total number of draws."""
    rows = fitted.conditions(given, 1 if isinstance(given, Mapping) else len(given)).repeat(n, axis=0)
    return rows, len(rows)


def _temperature(text, fitted):
    """Parse one number, or numbers by the name of a block of the latent."""
    if "=" in text and fitted.application != "images":
        raise InputError(f"got --temperature {text} for a run of {fitted.application}; expected one number such as 0.7")
    pairs = [part.rpartition("=") for part in text.split(",")] if "=" in text else [("", "", text)]
    numbers = {name.strip(): number_in(number, "--temperature") for name, _, number in pairs}
    if min(numbers.values()) < 0:
        raise InputError(f"got --temperature {text}; expected 0 or more")
    return numbers if "=" in text else numbers[""]


def _class_of(classifier, label):
    """The class that a text denotes."""
    (code,) = classifier.codes([label])
    if code < 0:
        names = ", ".join(map(str, classifier.classes[:12]))
        raise InputError(
            f"got --label {label}; expected one of {names}{', ...' if len(classifier.classes) > 12 else ''}"
        )
    return classifier.classes[code]


@verb(
    app,
    "invert",
    "flowknife invert runs/arm observations.csv -n 1000 --out poses.csv",
    "flowknife invert runs/basin anomalies.npy -n 200 --seed 0 --out depths.npz",
    "flowknife invert runs/basin anomalies.npy -n 200 --refine --out depths.npz",
    "flowknife invert runs/mine observations.csv --refine --simulator mine.py:forward --out causes.csv",
)
def _invert(
    run: Run,
    observations: Annotated[
        str, typer.Argument(metavar="OBSERVATIONS", help="A table, one observation in each row: .csv, .npy, .npz, ...")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A table file: .csv, .npy, .npz, ...")],
    n: Annotated[int, typer.Option("-n", min=1, help="Number of draws for each observation.")] = 1000,
    refine: Refine = False,
    simulator: Forward = None,
    seed: Seed = None,
    drop_invalid: DropInvalid = False,
    overwrite: Replace = False,
) -> None:
    """Draw parameters that explain each observation.

    The first column of FILE is the number of the observation, from 0; the others are the parameters.

    With --refine, the draws are made exact by importance weights, or by Markov chains that start from them. The
    likelihood is known for a problem by name, and for your own simulator, named by --simulator, with Gaussian noise
    (the setting noise).
    """
    from flowknife.apps import load

    require_output(out, observations, run=run, overwrite=overwrite)
    fitted: Any = load(run)
    if fitted.application != "invert":
        raise InputError(f"got a run of {fitted.application}; expected one of invert; try flowknife sample")
    _explain(_refinable(fitted, refine, simulator), observations, out, n, seed, drop_invalid, refine=refine)


def _refinable(posterior, refine, simulator):
    """The posterior with the named simulator; refused if its draws cannot be refined.

    Raises:
        InputError: the likelihood is not known, or a simulator is given without --refine.
    """
    from flowknife.data import predicted

    if simulator is not None:
        if not refine:
            raise InputError("got --simulator without --refine, which alone needs it; try --refine")
        posterior = replace(posterior, forward=partial(predicted, simulator_in(simulator)))
    if not refine:
        return posterior
    try:
        posterior.likelihood  # noqa: B018, it is computed once, before anything is drawn
    except InputError as error:
        if posterior.forward is not None:
            raise
        raise InputError(f"{error}, or --simulator FILE.py:NAME") from None
    return posterior


def _explain(posterior, observations, out, n, seed, drop_invalid=False, **options):
    """Write `n` posterior draws for each observation, and report observations that are unlike the simulations."""
    import numpy as np

    kind = kind_of(posterior)
    write = kind.writer(posterior, out, n)
    items = kind.read(posterior, observations, Choice(drop_invalid))
    drawn = posterior.sample(n, y=items.values, key=seed, show_progress=True, **options)
    scores = numbered(posterior.score(items.values), items)
    rows = [np.repeat(scores["row"], n), drawn.reshape(-1, drawn.shape[-1])]
    as_text = "sv" in "".join(out.suffixes)  # keeps integers, and the short form of single precision
    write(np.column_stack([part.astype(str) for part in rows] if as_text else rows))
    tell_left_out(items, out)
    if posterior.flagging.note:
        say(printable(f"note: {posterior.flagging.note}"), err=True)
    if flagged := int(np.sum(scores.get("flag", 0))):
        alpha = posterior.config.alpha
        are = "is" if flagged == 1 else "are"
        say(f"{flagged} of {counted(len(drawn), 'observation')} {are} unlike the simulations (p < {alpha:g})", err=True)
    each = f"each of {len(drawn):,} observations" if len(drawn) > 1 else "the observation"
    say(f"wrote {counted(n, 'draw')} for {each} to {out}")
