"""The rows of the benchmark: what is run, by which systems, with which settings. Each is one entry of `ROWS`.

A side is a program of `benchmarks/programs` in the environment of one system. All sides of a row get the same settings
and the same data, on all cores; a reason in the place of a side says why a system cannot do the row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks import prepared
from benchmarks.environments import INSTALLED, OWN

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A number that each sample has.

    Args:
        title: head of its column.
        better: what is better; None for a number that says only what was run.
        digits: after the point.
    """

    title: str
    better: Literal["smaller", "larger"] | None = "smaller"
    digits: int = 1


@dataclass(frozen=True)
class Side:
    """One system's part of a row.

    Args:
        program: its file in `benchmarks/programs`.
        environment: whose Python runs it.
        settings: in addition to those of the row.
        cache: "cold" starts with an empty cache of compiled programs, "warm" with that of the last cold side.
    """

    program: str
    environment: str = OWN
    settings: Settings = field(default_factory=dict)
    cache: Literal["cold", "warm"] | None = None


@dataclass(frozen=True)
class Row:
    """A row: every side measured `repeats` times, in turn.

    Args:
        title: what is run.
        measures: by the name that samples have them under.
        sides: by the name that tables show; a sentence for a system that is unable.
        settings: of all sides.
        small: settings that replace others, those of sides too, for a trial.
        fresh: every sample is a process of its own; otherwise each side is one process that waits for its turn.
        repeats: samples of each side.
        limit: seconds for the whole row, after which what is missing stays missing.
        prepare: writes what all sides read, `prepare(settings, folder)`, and returns settings.
        judge: what is found out about a sample afterwards, `judge(settings, folder)`.
        against: the side that ratios are taken against.
    """

    title: str
    measures: Mapping[str, Measure]
    sides: Mapping[str, Side | str]
    settings: Settings = field(default_factory=dict)
    small: Settings = field(default_factory=dict)
    fresh: bool = False
    repeats: int = 5
    limit: float = 150
    prepare: Callable[[Settings, Path], Settings] | None = None
    judge: Callable[[Settings, Path], Mapping[str, float]] | None = None
    against: str = "flowknife"


_NO_FLOW = "has no normalizing flows"
_SBI = "uses the flows of nflows and zuko, which have results of their own"


def _flows(
    job: str,
    scalar: str,
    *,
    kind: str = "coupling",
    ours: Mapping[str, Side] | None = None,
    flowjax: Settings | None = None,
) -> dict[str, Side | str]:
    """Every system that has such flows."""
    of = {"job": job}
    freia: Side | str = Side("flows_freia", "freia", of)
    if kind == "autoregressive":
        freia = "has no autoregressive flows"
    elif scalar == "spline":
        freia = "the released version has no splines"
    return {
        **(ours or {"flowknife": Side("flows_flowknife", settings=of)}),
        "FlowJAX": Side("flows_flowjax", "flowjax", {**of, **(flowjax or {})}),
        "zuko": Side("flows_zuko", "zuko", of),
        "normflows": Side("flows_normflows", "normflows", of),
        "nflows": Side("flows_nflows", "nflows", of),
        "FrEIA": freia,
        "sbi": _SBI,
        "pyod": _NO_FLOW,
    }


def _cold_and_warm(program: str, settings: Settings | None = None) -> dict[str, Side]:
    return {
        f"flowknife, {cache} cache": Side(program, settings=settings or {}, cache=cache) for cache in ("cold", "warm")
    }


def _training(dim: int, batch: int, width: int, scalar: str, kind: str = "coupling", limit: float = 200) -> Row:
    numbers = {"dim": dim, "batch": batch, "width": width, "layers": 8, "scalar": scalar, "kind": kind}
    autoregressive = kind == "autoregressive"
    of = {"job": "train"}
    ours = {"flowknife": Side("flows_flowknife", settings=of)}
    # FlowJAX trains the slopes at the ends of a spline too: of many dimensions, that is more than 5 % more parameters
    equal = scalar == "spline" and dim == 64
    if not autoregressive:
        ours["flowknife, as in fk.density"] = Side("flows_flowknife", settings={**of, "defaults": True})
    return Row(
        f"training step: {'masked autoregressive flow' if autoregressive else 'coupling flow'}, {scalar}, {dim}-D, "
        f"batches of {batch}, 8 layers, two hidden layers of {width}",
        {"ms": Measure("ms per step", digits=2)},
        _flows("train", scalar, kind=kind, ours=ours, flowjax={"width": 248} if equal else None),
        settings={**numbers, "seconds": 0.6, "short": 10},
        small={"seconds": 0.05, "short": 5, "layers": 2, "batch": 32, "width": 16},
        limit=limit,
    )


def _compiled() -> Row:
    """Whether the peers in PyTorch gain by `torch.compile`, which needs a C++ compiler; the other rows do without."""
    row = _training(8, 256, 128, "spline")
    sides = {"flowknife": row.sides["flowknife"]}
    for name in ("zuko", "normflows", "nflows"):
        sides[name] = row.sides[name]
        sides[f"{name}, torch.compile"] = Side(f"flows_{name}", name, {"job": "train", "compile": True})
    return replace(row, title=f"the peers compiled: {row.title}", sides=sides, repeats=3, limit=180)


def _nats(toy: str, goal: float) -> Row:
    ours = _cold_and_warm("flows_flowknife", {"job": "density"})
    return Row(
        f"{toy}, 8,000 rows, from the start of the process: nats above the entropy of 50,000 new rows. Peers: spline "
        "couplings of 8 layers, two hidden layers of 64, Adam with a cosine rate over the time",
        {
            "seconds": Measure("seconds"),
            "nats": Measure("nats above the entropy", digits=4),
            "within": Measure(f"seconds to {goal} nats"),
        },
        _flows("density", "spline", ours=ours),
        settings={
            "toy": toy,
            "rows": 8000,
            "new": 50_000,
            "close": goal,
            "dim": 2,
            "batch": 512,
            "width": 64,
            "layers": 8,
            "scalar": "spline",
            "kind": "coupling",
            "rate": 2e-3,
            "budget": 15.0,
            "every": 2.5,
        },
        small={"rows": 200, "new": 500, "budget": 4.0, "layers": 2, "width": 16},
        fresh=True,
        repeats=1,
        limit=240,
        prepare=prepared.toy,
        against="flowknife, warm cache",
    )


def _table(data: str, words: str) -> Row:
    detector = {
        "scikit-learn": Side("table_detectors", "pyod", {"detector": "scikit-learn"}),
        "pyod": Side("table_detectors", "pyod", {"detector": "pyod"}),
    }
    return Row(
        f"{words}; from the start of the process to the scores of new rows",
        {"seconds": Measure("seconds"), "auroc": Measure("AUROC", "larger", 3)},
        {
            **_cold_and_warm("table_flowknife"),
            **detector,
        },
        settings={"table": data, "splits": 3},
        fresh=True,
        repeats=3,
        limit=120,
        prepare=prepared.table,
        against="flowknife, warm cache",
    )


def _evaluation(what: str, words: str) -> Row:
    rows = [1, 1000, 1_000_000]
    units = [Measure(f"{n:,} row{'s' if n > 1 else ''}, ms", digits=2 if n < 10_000 else 0) for n in rows]
    return Row(
        f"{words} of 2-D rows, spline couplings, 8 layers, two hidden layers of 64; a million in parts of 16,384",
        dict(zip(map(str, rows), units, strict=True)),
        _flows("evaluate", "spline"),
        settings={
            "what": what,
            "dim": 2,
            "batch": 256,
            "width": 64,
            "layers": 8,
            "scalar": "spline",
            "kind": "coupling",
            "rows": rows,
        },
        small={"rows": [1, 100], "layers": 2},
        repeats=3,
        limit=180,
    )


_GLOW = {"side": 32, "batch": 32, "levels": 3, "width": 128, "memory": "standard", "calls": 3}
_NORMFLOWS = {"width": 131}  # with 128 it has 5.2 % fewer parameters
_SMALL_GLOW = {"side": 8, "batch": 4, "levels": 1, "width": 8, "calls": 1, "steps": 2}


def _glow() -> Row:
    return Row(
        "training step of Glow: 32x32x3, three levels of eight steps, width 128, batches of 32, affine couplings",
        {"ms": Measure("ms per step", digits=0), "mebibytes": Measure("peak MiB", digits=0)},
        {
            "flowknife": Side("glow_flowknife"),
            "normflows": Side("glow_normflows", "normflows", _NORMFLOWS),
            "FrEIA": "its 1x1 convolutions are fixed or orthogonal, none is a trained LU product",
        },
        settings={**_GLOW, "steps": 8},
        small=_SMALL_GLOW,
        repeats=5,
    )


def _memory(steps: int) -> Row:
    kinds = {"flowknife, reversible": "reversible", "flowknife, standard": "standard"}
    return Row(
        f"peak memory of Glow's training, {steps} steps per level, otherwise as train-glow",
        {"mebibytes": Measure("peak MiB", digits=0), "ms": Measure("ms per step", digits=0)},
        {
            **{name: Side("glow_flowknife", settings={"memory": kind}) for name, kind in kinds.items()},
            "normflows": Side("glow_normflows", "normflows", _NORMFLOWS),
        },
        settings={**_GLOW, "steps": steps, "calls": 1},
        small=_SMALL_GLOW,
        fresh=True,
        repeats=1,
        against="flowknife, reversible",
    )


def _work() -> Row:
    shapes = {"2-D": (2, 256, 64), "8-D": (8, 256, 128), "64-D": (64, 512, 256)}
    sides = {
        f"{scalar}, {words}": Side(
            "work_flowknife", settings={"dim": dim, "batch": batch, "width": width, "scalar": scalar}
        )
        for words, (dim, batch, width) in shapes.items()
        for scalar in ("affine", "spline")
    }
    milliseconds = {
        "products": "products",
        "networks": "+ activations",
        "flow": "flow's gradient",
        "update": "+ Adam",
        "step": "step of fk.fit",
    }
    return Row(
        "where the time of a training step goes: floating-point work of the networks' matrix products, and ms",
        {
            "mflop": Measure("MFLOP", None, 0),
            **{name: Measure(f"{words}, ms", None, 2) for name, words in milliseconds.items()},
            "rate": Measure("GFLOP/s of the step", None),
            "products_rate": Measure("GFLOP/s of the products", None),
            "best_rate": Measure("GFLOP/s of a product of 1024x1024", None),
        },
        sides,
        settings={"layers": 8, "kind": "coupling", "seconds": 0.3, "short": 10, "batch": None, "width": None},
        small={"seconds": 0.02, "short": 5, "layers": 2, "batch": 32, "width": 16},
        repeats=3,
        limit=180,
        against="",
    )


ROWS: dict[str, Row] = {
    "train-affine-2d": _training(2, 256, 64, "affine"),
    "train-spline-2d": _training(2, 256, 64, "spline"),
    "train-affine-8d": _training(8, 256, 128, "affine"),
    "train-spline-8d": _training(8, 256, 128, "spline"),
    "train-affine-64d": _training(64, 512, 256, "affine"),
    "train-spline-64d": _training(64, 512, 256, "spline"),
    "train-autoregressive-8d": _training(8, 256, 128, "affine", "autoregressive"),
    "nats-ring": _nats("ring", 0.03),
    "nats-moons": _nats("moons", 0.03),
    "table-59x13": _table("wine", "59 x 13: wine of the second cultivar; 12 other rows of it, and 107 of the others"),
    "table-1000x20": _table(
        "digits", "1,000 x 20: digits 0 to 8 in their 20 first principal components; 617 new ones, and 180 nines"
    ),
    "log-prob": _evaluation("log_prob", "log density"),
    "sample": _evaluation("sample", "sampling"),
    "posterior-two-moons": Row(
        "two_moons, 10,000 simulations, from the start of the process: to 10,000 draws, and with flowknife's "
        "`check()`. C2ST of 5,000 draws of each of two observations",
        {
            "seconds": Measure("seconds, with check"),
            "draws": Measure("seconds to draws"),
            "c2st": Measure("C2ST", digits=3),
        },
        {
            **_cold_and_warm("posterior_flowknife"),
            "sbi, NPE": Side("posterior_sbi", "sbi", {"estimator": "maf"}),
            "sbi, NPE with splines": Side("posterior_sbi", "sbi", {"estimator": "nsf"}),
        },
        settings={"simulations": 10_000, "draws": 10_000, "compared": 5000, "observations": 2, "epochs": None},
        small={"simulations": 200, "draws": 100, "compared": 100, "observations": 1, "epochs": 2},
        fresh=True,
        repeats=1,
        limit=420,
        prepare=prepared.two_moons,
        judge=prepared.c2st,
        against="flowknife, warm cache",
    ),
    "train-glow": _glow(),
    "work": _work(),
    "start": Row(
        "what a shell waits for: the import of a package's flows (pyod: a detector), `import flowknife`, and "
        "`flowknife --help`",
        {
            "used": Measure("flows imported, s", digits=2),
            "import": Measure("import flowknife, s", digits=2),
            "help": Measure("--help, s", digits=2),
        },
        {
            "flowknife": Side("start", INSTALLED, {"package": "flowknife"}),
            **{name: Side("start", name.lower(), {"package": name}) for name in ("zuko", "normflows", "nflows")},
            "FrEIA": Side("start", "freia", {"package": "FrEIA"}),
            "FlowJAX": Side("start", "flowjax", {"package": "flowjax"}),
            "sbi": Side("start", "sbi", {"package": "sbi"}),
            "pyod": Side("start", "pyod", {"package": "pyod"}),
        },
        settings={"runs": 1},
        repeats=3,
        limit=240,
    ),
    "first-step": Row(
        "from the start of the process to the first training step, spline, 2-D, as train-spline-2d",
        {"seconds": Measure("seconds")},
        _flows("first", "spline", ours=_cold_and_warm("flows_flowknife", {"job": "first"})),
        settings={"dim": 2, "batch": 256, "width": 64, "layers": 8, "scalar": "spline", "kind": "coupling"},
        small={"layers": 2},
        fresh=True,
        repeats=3,
        against="flowknife, warm cache",
    ),
    "size": Row(
        "disk that an environment of one package takes, without compiled files of Python; torch for the CPU, "
        "flowknife linked to its source of 1 MiB",
        {"mebibytes": Measure("MiB", digits=0), "packages": Measure("packages", None, 0)},
        {
            "flowknife": Side("size", INSTALLED, {"package": "flowknife"}),
            **{
                name: Side("size", name.lower(), {"package": name})
                for name in ("FlowJAX", "zuko", "normflows", "nflows", "FrEIA", "sbi", "pyod")
            },
        },
        fresh=True,
        repeats=1,
    ),
    "train-compiled": _compiled(),
    "memory-8": _memory(8),
    "memory-32": _memory(32),
    "programs": Row(
        "programs that a job of flowknife compiles, from an empty cache, and how many of them it finds there again",
        {
            "programs": Measure("programs", digits=0),
            "found": Measure("of them found in the cache", None, 0),
            "compiling": Measure("seconds compiling"),
            "seconds": Measure("seconds"),
        },
        {
            f"{work}, {cache}": Side("programs_flowknife", settings={"work": work}, cache=cache)
            for work in ("density", "table", "classify", "invert", "images")
            for cache in ("cold", "warm")
        },
        fresh=True,
        repeats=1,
        limit=240,
        against="",
    ),
}
