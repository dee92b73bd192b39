"""`fk.images` on a folder of images: bits/dim of new images, and AUROC against other images.

    IMAGES=folder MINUTES=15 python -m benchmarks images

`folder` holds `train/`, `val/` and, for the anomalies, `other/`; without one, the digits of scikit-learn are used.
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np

import flowknife as fk
from flowknife.apps import Images

_DIRECTIONS = 200  # of the Gaussian that samples are shown beside


def run() -> None:
    """Print bits/dim, the false-alarm rate and the AUROC, and write the report beside the images."""
    minutes = float(os.environ.get("MINUTES", "2"))
    folder = Path(os.environ["IMAGES"]) if "IMAGES" in os.environ else _digits(Path(tempfile.mkdtemp()))
    start = time.perf_counter()
    model = fk.images(folder / "train", train={"minutes": minutes}, key=0)
    normal = model.score(folder / "val")
    print(f"images of {folder / 'train'}, {minutes:g} minutes asked, {time.perf_counter() - start:.0f} s taken")
    bits = normal["bits_per_dim"]
    print(f"bits/dim of {len(bits)} new images at {model.config.bits} bits: {bits.mean():.4f}")
    print(f"of these flagged at p < 0.05: {np.mean(normal['p_value'] < 0.05):.3f}")
    others = folder / "other"
    if others.is_dir():
        other = model.score(others)
        print(f"{'AUROC of':<16}{'score':>8}{'bits/dim':>10}{'radius':>8}{'flagged':>9}")
        kinds = np.array([name.split("/")[0].rsplit("_", 1)[0] for name in other["path"]])
        for kind in ["all", *np.unique(kinds)]:
            rows = np.ones(len(kinds), bool) if kind == "all" else kinds == kind
            areas = [
                fk.diagnostics.auroc(normal[name], other[name][rows]) for name in ("score", "bits_per_dim", "radius")
            ]
            print(f"{kind:<16}{areas[0]:>8.3f}{areas[1]:>10.3f}{areas[2]:>8.3f}{other['flag'][rows].mean():>9.2f}")
    model.save(folder / "run")
    print(_beside_principal_gaussian(model, folder))
    print(model.report(folder / "run", others=others if others.is_dir() else None))


def principal_gaussian(train: np.ndarray, n: int) -> tuple[str, np.ndarray]:
    """`n` draws at T = 0.7 of the Gaussian of the leading principal directions of images, and what they are."""
    rows = train.reshape(len(train), -1).astype(float)
    mean = rows.mean(axis=0)
    _, spread, axes = np.linalg.svd(rows - mean, full_matrices=False)
    spread, axes = spread[:_DIRECTIONS] / len(rows) ** 0.5, axes[:_DIRECTIONS]
    draws = mean + 0.7 * np.random.default_rng(0).normal(size=(n, len(spread))) * spread @ axes
    pixels = np.clip(np.round(draws), 0, 255).astype(np.uint8).reshape(-1, *train.shape[1:])
    return f"Gaussian, {len(spread)} directions, T = 0.7", pixels


def _beside_principal_gaussian(model: Images, folder: Path) -> Path:
    """Samples beside those of a Gaussian in the leading principal directions, the least that a model has to surpass."""
    size = model.shape[0]
    train = fk.data.load_images(folder / "train", size).pixels
    new = fk.data.load_images(folder / "val", size).pixels
    groups = [
        ("Flow, T = 0.7", model.sample(30, key=0, temperature=0.7)),
        principal_gaussian(train, 30),
        ("New images", new[:30]),
    ]
    path = folder / "run" / "figures" / "beside_gaussian.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    fk.plots.compare(groups, "Samples beside a Gaussian in the leading principal directions.").savefig(path)
    return path


def _digits(folder: Path) -> Path:
    """Digits as images, blank and noisy ones as other things."""
    pixels, _ = fk.data.digits()
    noise = np.random.default_rng(0).integers(0, 256, (20, *pixels.shape[1:]), dtype=np.uint8)
    fk.data.write_folder(pixels[:1500], folder / "train")
    fk.data.write_folder(pixels[1500:], folder / "val")
    fk.data.write_folder(np.concatenate([noise, 255 - pixels[:20]]), folder / "other")
    return folder
