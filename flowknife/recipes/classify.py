"""Recipes for generative classification."""

from flowknife.recipes._recipe import Expected, Recipe

CLASSIFY = (
    Recipe(
        "classify-ring",
        "classify",
        "eight modes on a ring, each a class",
        'x and labels of 8,000 rows of flowknife.data.TOYS["ring"], whose labels are flowknife.data.ring_labels(x)',
        "ring.npz",
        {"law": "mixture", "beta": 4.0, "layers": 6, "width": 64, "scalar": "spline"},
        0.5,
        Expected(100, "% right", "new rows", 0.5, "the best that is possible: 99.9999 %"),
    ),
    Recipe(
        "classify-digits",
        "classify",
        "small digits, 8x8",
        "the digits of scikit-learn, flowknife.data.digits(), in one folder per class",
        "data/digits",
        {"law": "mixture", "beta": 0.5, "layers": 6, "width": 256, "scalar": "affine"},
        50 / 60,
        Expected(98.3, "% right", "the quarter that was held out (two splits, 98.4 and 98.2)", 50 / 60),
    ),
    Recipe(
        "classify-mnist",
        "classify",
        "handwritten digits, 28x28, from few of them",
        "4,000 digits of MNIST, of flowknife.data.mnist_5k(), in one folder per class",
        "data/mnist",
        {"law": "mixture", "beta": 0.5, "layers": 6, "width": 256, "scalar": "affine"},
        80 / 60,
        Expected(96.5, "% right", "1,000 others of the 5,000 (two splits, 96.8 and 96.3)", 80 / 60),
    ),
)
"""Recipes of `flowknife fit classify`."""
