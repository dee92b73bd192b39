"""The first figure of the README: all seven jobs in motion, three seconds each, as one SVG file.

    python docs/animation.py RUNS        # a folder of runs with the names of the tutorials

docs/figures.py writes it from the models that the tutorials fit. Each job shows what stands at the two ends of the
network and an example: frames of a few numbers that the model computes. The file is light or dark as the reader
prefers, and stands still for those who prefer that.
"""

import base64
import io
import sys
from pathlib import Path

import numpy as np

import flowknife as fk

PLACE = Path(__file__).resolve().with_name("seven-jobs.svg")
SECONDS = 3
WIDTH, HEIGHT = 860, 312
CARD = 270.0, 200.0  # of each end
LEFT, RIGHT, TOP = 16.0, WIDTH - 16.0 - CARD[0], 62.0

_STYLE = """
:root { --page: #fafbfc; --card: #fff; --ink: #1f2530; --quiet: #5d6675; --rule: #d5dae1; --blue: #2a6ea6;
  --warm: #b8480f; --tint: #eaf2f8; --c0: #2a6ea6; --c1: #b8480f; --c2: #2e7d46; --c3: #8a3a86;
  --c4: #8a6a00; --c5: #0f7a80; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --card: #1c2128; --ink: #e4e7ec; --quiet: #9aa4b2;
  --rule: #3d4552; --blue: #7fb4de; --warm: #f39a5f; --tint: #1b2a38; --c0: #7fb4de; --c1: #f39a5f;
  --c2: #7fcf9b; --c3: #d59ad2; --c4: #dcbf57; --c5: #5fc4c9; } }
text { font: 15px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--ink); }
.small { font-size: 13px; fill: var(--quiet); }
.title { font-size: 19px; font-weight: 600; }
.page { fill: var(--page); }
.card { fill: var(--card); stroke: var(--rule); }
path { fill: none; stroke-linecap: round; stroke-linejoin: round; }
.f { visibility: hidden; }
"""


# -- marks ------------------------------------------------------------------------------------------------------------


class Axes:
    """A card whose inside has coordinates of its own."""

    def __init__(self, left, x, y, equal=False):
        self.x0, self.y0 = left + 12, TOP + 12
        wide, high = CARD[0] - 24, CARD[1] - 24
        (a, b), (c, d) = x, y
        self.sx, self.sy = wide / (b - a), high / (d - c)
        if equal:
            self.sx = self.sy = min(abs(self.sx), abs(self.sy))
            a, d = (a + b) / 2 - wide / 2 / self.sx, (c + d) / 2 + high / 2 / self.sy
        self.a, self.d = a, d

    def at(self, xy):
        """Places on the canvas, (n, 2)."""
        xy = np.asarray(xy, float)
        return np.stack([self.x0 + (xy[..., 0] - self.a) * self.sx, self.y0 + (self.d - xy[..., 1]) * self.sy], axis=-1)

    def points(self, xy, colour, size=3.0, opacity=0.8):
        """Dots: lines of no length with round ends."""
        right, bottom = self.x0 + CARD[0] - 24, self.y0 + CARD[1] - 24
        inside = [(x, y) for x, y in self.at(xy) if self.x0 <= x <= right and self.y0 <= y <= bottom]
        steps = " ".join(f"M{x:.1f} {y:.1f}h0" for x, y in inside)
        return f'<path d="{steps}" stroke="{colour}" stroke-width="{size}" stroke-opacity="{opacity}"/>'

    def lines(self, polylines, colour, width=1.0, opacity=1.0):
        """Lines, (n, k, 2)."""
        steps = " ".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in self.at(line)) for line in polylines)
        return f'<path d="{steps}" stroke="{colour}" stroke-width="{width}" stroke-opacity="{opacity}"/>'

    def ring(self, xy, colour="var(--warm)", radius=7):
        """A ring."""
        ((x, y),) = self.at([xy])
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="none" stroke="{colour}" stroke-width="2.5"/>'


def image(pixels, x, y, side, name=""):
    """An image (h, w, C) of uint8."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG", optimize=True)
    content = base64.b64encode(file.getvalue()).decode("ascii")
    return (
        f'<image x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" style="image-rendering:pixelated" '
        f'href="data:image/png;base64,{content}"/>'
        + (words(name, x + side / 2, y + side + 16, "middle") if name else "")
    )


def words(text, x, y, anchor="start", kind="small"):
    """A line of text."""
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{text}</text>'


def range_of(values, margin=0.08):
    """From the smallest to the largest, with a margin."""
    low, high = np.quantile(values, [0.002, 0.998])
    return low - margin * (high - low), high + margin * (high - low)


def grid_around(centre, half=0.5, count=4, length=15):
    """Straight lines of a small square, (2 count, length, 2)."""
    t, c = np.linspace(-half, half, length), np.linspace(-half, half, count)
    across = np.stack(np.meshgrid(t, c), axis=-1)
    return np.concatenate([across, across[..., ::-1]]) + centre


class Inset(Axes):
    """A small part of a card with its own coordinates and a name below: the part of an end that is no data."""

    SIDE = 56.0

    def __init__(self, x, y, half, name):
        self.x0, self.y0, self.a, self.d = x, y, -half, half
        self.sx = self.sy = self.SIDE / (2 * half)
        self.frame = (
            f'<rect x="{x}" y="{y}" width="{self.SIDE}" height="{self.SIDE}" rx="4" fill="none" stroke="var(--rule)"/>'
            + words(name, x + self.SIDE / 2, y + self.SIDE + 14, "middle")
        )

    def points(self, xy, colour, size=3.0, opacity=0.8):
        """Dots; those outside are left out."""
        inside = np.asarray(xy)[np.abs(xy).max(axis=1) < -self.a]
        return super().points(inside, colour, size, opacity)


def latent(x, y):
    """The latent next to what was measured: a round cloud, N(0, I)."""
    inset = Inset(x, y, 3.0, "z")
    return inset.frame + inset.points(np.random.default_rng(0).normal(size=(70, 2)), "var(--quiet)", 2.2, 0.7)


# -- the seven jobs: what stands left, what stands right, what is always shown, and frames ---------------------------


def density(flow):
    """Two moons and the normal distribution."""
    x = flow.joint_frame.from_model(flow.reference[:500])
    z = flow.encode(x)
    hue = np.digitize(np.arctan2(x[:, 1] - x[:, 1].mean(), x[:, 0] - x[:, 0].mean()), np.linspace(-np.pi, np.pi, 7)) - 1
    left, right = (
        Axes(LEFT, range_of(x[:, 0]), range_of(x[:, 1]), equal=True),
        Axes(RIGHT, (-4, 4), (-3, 3), equal=True),
    )
    still = [
        "".join(axes.points(rows[hue == k], f"var(--c{k})") for k in range(6)) for axes, rows in ((left, x), (right, z))
    ]
    frames = []
    for angle in np.linspace(0, 2 * np.pi, 18, endpoint=False):
        centre = 1.3 * np.array([np.cos(angle), np.sin(angle)])
        lines = grid_around(centre)
        bent = flow.decode(lines.reshape(-1, 2)).reshape(lines.shape)
        frames.append("".join(axes.lines(part, "var(--warm)", 1.6) for axes, part in ((left, bent), (right, lines))))
    return "x: rows of a table", "z: N(0, I)", "".join(still), frames


def _levels(z, model, x, y, width):
    """The latent of each level as an image of noise."""
    parts, found = list(model.levels.items()), []
    sides = [max(int(np.ceil(np.sqrt(columns.stop - columns.start))), 1) for _, columns in parts]
    scale = min((width - 14 * (len(sides) - 1)) / sum(sides), 140 / max(sides))
    x += (width - scale * sum(sides) - 14 * (len(sides) - 1)) / 2
    for (name, columns), side in zip(parts, sides, strict=True):
        values = np.zeros(side * side)
        values[: columns.stop - columns.start] = z[columns]
        grey = np.clip(128 + 45 * values, 0, 255).astype(np.uint8).reshape(side, side, 1)
        found.append(image(grey, x, y, scale * side, name))
        x += scale * side + 14
    return "".join(found)


def images(model):
    """Images on the way from one to another, and their latents."""
    real = model.examples
    ways = [model.interpolate(real[i], real[i + 1], steps=6) for i in (0, 2, 4)]
    frames = []
    for way in ways:
        for pixels, z in zip(way, model.encode(way), strict=True):
            right = _levels(z, model, RIGHT + 20, TOP + 24, CARD[0] - 40)
            frames.append(image(pixels, LEFT + 51, TOP + 16, 168) + right)
    return "image", "z: one latent for each scale", "", frames


def classify_images(model):
    """Digits, and the probability of each class."""
    items, labels = model.examples
    some = [int(np.flatnonzero(labels == k)[0]) for k in range(len(model.classes))][:10]
    frames = []
    for i, p in zip(some, model.predict_proba(items[some]), strict=True):
        rows = []
        for k, share in enumerate(p[:10]):
            y = TOP + 14 + k * 18
            colour = "var(--blue)" if share == p.max() else "var(--rule)"
            place = f'x="{RIGHT + 44:.1f}" y="{y}" width="{max(140 * share, 2):.1f}" height="12" rx="2"'
            rows.append(words(str(model.classes[k]), RIGHT + 34, y + 11, "end") + f'<rect {place} fill="{colour}"/>')
        frames.append(image(items[i], LEFT + 51, TOP + 16, 168) + "".join(rows))
    return "image", "y: its class, and z", latent(RIGHT + CARD[0] - 70, TOP + CARD[1] - 84), frames


def classify_rows(model):
    """Points of the plane, and the classes at the right end."""
    items, labels = model.examples
    x = model.frame.from_model(items[:600])
    labels, z = labels[:600], model.encode(x)[:, :2]
    left, right = (
        Axes(place, range_of(rows[:, 0]), range_of(rows[:, 1]), equal=True) for place, rows in ((LEFT, x), (RIGHT, z))
    )
    still = [
        axes.points(rows[labels == k], f"var(--c{k % 6})")
        for axes, rows in ((left, x), (right, z))
        for k in range(len(model.classes))
    ]
    radius = np.linalg.norm(x - x.mean(axis=0), axis=1).mean()
    angles = np.linspace(0, 2 * np.pi, 18, endpoint=False)
    way = x.mean(axis=0) + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ends, p = model.encode(way)[:, :2], model.predict_proba(way)
    frames = []
    for row, end, share in zip(way, ends, p, strict=True):
        k = int(share.argmax())
        said = words(f"class {model.classes[k]}, p = {share[k]:.2f}", RIGHT + CARD[0] - 12, TOP + CARD[1] - 10, "end")
        frames.append(left.ring(row, "var(--ink)") + right.ring(end, "var(--ink)") + said)
    return "x: rows of a table", "y: their class, and z", "".join(still), frames


def parameters(posterior):
    """Poses of a robot arm that reach one place."""
    from flowknife.problems._kinematics import joints

    left, right = (Axes(place, (-0.45, 2.2), (-1.0, 1.0), equal=True) for place in (LEFT, RIGHT))
    hands = [(1.55 + 0.25 * np.cos(a), 0.55 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 18, endpoint=False)]
    cloud = right.points(posterior.example_pairs["y"][:250], "var(--quiet)", 2.5, 0.45)
    cloud += latent(RIGHT + 14, TOP + CARD[1] - 84)
    frames = []
    for hand, drawn in zip(hands, posterior.sample(40, y=np.array(hands), key=0, common=True), strict=True):
        arms = left.lines(np.asarray(joints(drawn)), "var(--blue)", 1.1, 0.4) + left.ring(hand)
        said = words("hand", *(right.at([hand])[0] + [-12, -14]), "end")
        frames.append(arms + right.ring(hand) + said)
    return "x: the pose of an arm", "y: the hand, and z", cloud, frames


def _stairs(edges, values):
    """Steps between edges, (n, 2 k, 2)."""
    x = np.repeat(edges, 2)[1:-1]
    return np.stack([np.broadcast_to(x, (len(values), len(x))), np.repeat(values, 2, axis=1)], axis=-1)


def inverse(posterior):
    """Basins below a gravity anomaly."""
    geometry = fk.problems.gravity().geometry
    stations, edges = np.asarray(geometry["stations"]), np.asarray(geometry["edges"])
    pairs = posterior.example_pairs
    left = Axes(LEFT, (edges[0], edges[-1]), (-np.quantile(pairs["x"][:100], 0.999) * 1.1, 0))
    right = Axes(RIGHT, (edges[0], edges[-1]), range_of(pairs["y"][:100]))
    frames = []
    for y, drawn in zip(pairs["y"][:6], posterior.sample(40, y=pairs["y"][:6], key=0, common=True), strict=True):
        curve = np.stack([stations, y], axis=1)
        middle = left.lines(_stairs(edges, -np.median(drawn, axis=0)[None]), "var(--ink)", 2)
        seen = right.lines([curve], "var(--warm)", 1.2, 0.6) + right.points(curve, "var(--warm)", 6, 1)
        frames.append(left.lines(_stairs(edges, -drawn), "var(--blue)", 0.9, 0.3) + middle + seen)
    still = latent(RIGHT + 14, TOP + CARD[1] - 84)
    return "x: the depth of a basin", "y: its gravity anomaly, and z", still, frames


def noise(posterior):
    """Velocities below ground, and the noise of the data."""
    geometry = fk.problems.dispersion().geometry
    depths, periods = np.concatenate([[0], np.cumsum(geometry["thickness"])]), np.log(geometry["periods"])
    pairs = posterior.example_pairs
    left = Axes(LEFT, range_of(pairs["x"][:100]), (-depths[-1], 0))
    eps, places = Inset(LEFT + CARD[0] - 70, TOP + 14, 3.0, "noise"), np.linspace(-2.6, 2.6, len(periods))
    right = Axes(RIGHT, (periods[0] - 0.1, periods[-1] + 0.1), range_of(pairs["y"][:100]))
    frames = []
    for y in pairs["y"][:6]:
        drawn, wrong = posterior.sample_noise(40, y=y, key=0)
        errors = np.stack([np.broadcast_to(places, wrong.shape), wrong / wrong.std()], axis=-1)[:15]
        clean = np.stack([np.broadcast_to(periods, wrong.shape), y - wrong], axis=-1)
        ground = left.lines(_stairs(depths, drawn)[..., ::-1] * [1, -1], "var(--blue)", 0.9, 0.35)
        waves = right.lines(clean, "var(--blue)", 0.8, 0.35)
        seen = right.points(np.stack([periods, y], axis=1), "var(--warm)", 5, 1)
        frames.append(ground + waves + seen + eps.lines(errors, "var(--blue)", 0.8, 0.45))
    still = eps.frame + latent(RIGHT + 14, TOP + 14)
    return "x: velocities below ground, noise", "y: noisy surface waves, and z", still, frames


JOBS = {
    "density": ("Density of a table", density),
    "images": ("Images: generation, anomalies", images),
    "classify-images": ("Classification of images", classify_images),
    "classify-rows": ("Classification of rows", classify_rows),
    "parameters": ("Parameters that the data do not fix", parameters),
    "inverse": ("Ill-posed inverse problem", inverse),
    "noise": ("Noise in the data", noise),
}
"""By the name of the tutorial whose model is shown: the title, and what draws the scene."""


# -- the file ---------------------------------------------------------------------------------------------------------


def _network(number, title, left, right, still):
    """What a scene shows all the time: the title, two cards with their names, and the network between them."""
    middle, x0, x1 = TOP + CARD[1] / 2, LEFT + CARD[0], RIGHT
    box = f'x="{x0 + 52}" y="{middle - 34}" width="{x1 - x0 - 104}" height="68" rx="10"'
    arrows = "".join(
        f'<path d="M{a} {y}H{b}M{b - s * 7} {y - 5}L{b} {y}L{b - s * 7} {y + 5}" stroke="var(--quiet)"/>'
        for a, b, y, s in (
            (x0 + 8, x0 + 46, middle - 9, 1),
            (x0 + 46, x0 + 8, middle + 9, -1),
            (x1 - 46, x1 - 8, middle - 9, 1),
            (x1 - 8, x1 - 46, middle + 9, -1),
        )
    )
    shades = ["blue" if i == number else "rule" for i in range(len(JOBS))]
    dots = "".join(
        f'<circle cx="{WIDTH / 2 + 18 * (i - 3)}" cy="{HEIGHT - 14}" r="4.5" fill="var(--{shade})"/>'
        for i, shade in enumerate(shades)
    )
    cards = "".join(
        f'<rect class="card" x="{x}" y="{TOP}" width="{CARD[0]}" height="{CARD[1]}" rx="8"/>'
        + words(name, x + CARD[0] / 2, TOP + CARD[1] + 22, "middle", "")
        for x, name in ((LEFT, left), (RIGHT, right))
    )
    return (
        cards
        + f'<rect {box} fill="var(--tint)" stroke="var(--quiet)"/>'
        + words("one invertible", (x0 + x1) / 2, middle - 2, "middle")
        + words("network", (x0 + x1) / 2, middle + 14, "middle")
        + arrows
        + words(f"{number + 1}. {title}", WIDTH / 2, 34, "middle", "title")
        + dots
        + still
    )


def write(results, path=PLACE):
    """Write the figure of models by the name of their tutorial."""
    total, rules, scenes = SECONDS * len(JOBS), {}, []
    for number, (name, (title, scene)) in enumerate(JOBS.items()):
        *ends, frames = scene(results[name])
        for k, content in enumerate([_network(number, title, *ends), *frames]):
            count = 1 if k == 0 else len(frames)
            rules[count] = 100 * SECONDS / count / total
            start = SECONDS * number + (0 if k == 0 else SECONDS * (k - 1) / count)
            first = " first" if number == 0 and k < 2 else ""
            scenes.append(f'<g class="f n{count}{first}" style="animation-delay:{start:.3f}s">{content}</g>')
    motion = "".join(
        f"@keyframes n{count} {{ 0% {{ visibility: visible }} {share:.4f}%, 100% {{ visibility: hidden }} }}\n"
        f".n{count} {{ animation: n{count} {total}s step-end infinite }}\n"
        for count, share in rules.items()
    )
    calm = "@media (prefers-reduced-motion: reduce) { .f { animation: none } .first { visibility: visible } }"
    names = "; ".join(f"{i + 1}. {title}" for i, (title, _) in enumerate(JOBS.values()))
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="One invertible network, seven jobs: {names}">\n'
        f"<title>One invertible network, seven jobs</title>\n<style>{_STYLE}{motion}{calm}</style>\n"
        + f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="10"/>\n'
        + "\n".join(scenes)
        + "\n</svg>\n"
    )
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write({name: fk.load(Path(sys.argv[1]) / name) for name in JOBS})
