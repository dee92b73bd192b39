"""Networks of generative classification and their closed-form start.

    mixture:   x          <->  y ~ sum_k w_k N(mu_k, S_k),        z ~ N(0, I)
    label:     x (, pad)  <->  y ~ N(one-hot label, scale^2 I),   z ~ N(0, I)

The mixture starts as a quadratic discriminant analysis: whitened principal components, couplings that are the identity,
and for each class the mean and the (shrunk) covariance of its leading components. Images use a wavelet flow whose
coarsest level carries the class. The finer levels depend on the coarse image, not on the class.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flowknife._mixed import Mixed
from flowknife._types import Key, as_key
from flowknife.anomaly._features import level_features, log_spread
from flowknife.architectures import coupling_flow, wavelet
from flowknife.bijections import (
    Affine,
    Bijection,
    Chain,
    Orthogonal,
    PrincipalRotation,
    Reshape,
    Shift,
    ShiftScale,
    Spline,
)
from flowknife.errors import InputError
from flowknife.inn import INN, Block
from flowknife.laws import ClassMixture, Given, Law, Pad, Pixels
from flowknife.multiscale import level_part
from flowknife.objectives import class_block_log_probs, class_log_probs

# Splines only, which are the identity beyond 4 standard deviations. A stack of affine maps would move rows far
# outside of the training data even further out.
_SCALARS = {"spline": Spline(tail=4.0), "affine": ShiftScale(), "additive": Shift()}

_LABEL_SCALE = 0.1  # of the one-hot block (Ardizzone et al. 2019, arXiv 1808.04730, app. 2: 0.05 to 0.1)

_PAD_SCALE = 0.05

_PAD_DRAWS = 32  # p(x | label) is averaged over them if there is padding

_MOST_CARRIED = 32  # principal components whose law depends on the class; the others have one law for all classes

_MOST_COARSE = 16  # side in pixels of the coarse image that carries the classes


# -- the ends ---------------------------------------------------------------------------------------------------------


def class_law(model: INN) -> Law:
    """The law of the block that carries the label, the first on the right."""
    return model.partition.right[0].law


def is_image(model: INN) -> bool:
    """Whether the left end is an image."""
    return isinstance(model.partition.left[0].law, Pixels)


def given_label(model: INN, labels: Array) -> dict[str, Array]:
    """Labels, -1 for unknown, as the known value for the model, by block name."""
    block = model.partition.right[0]
    known = labels if isinstance(block.law, ClassMixture) else jax.nn.one_hot(labels, block.size)
    return {block.name: known}


def labels_of(model: INN, batch: dict[str, Any]) -> Int[Array, " n"]:
    """The inverse of `given_label`."""
    known = batch[model.partition.right[0].name]
    if isinstance(class_law(model), ClassMixture):
        return known
    return jnp.where(jnp.sum(known, axis=-1) > 0, jnp.argmax(known, axis=-1), -1)


def _class_blocks(law: str, classes: int, size: int, rest: str = "z") -> list[Block]:
    """Right-hand blocks of `size` numbers: one that carries the class, and the rest."""
    if law == "mixture":
        carried = min(size, _MOST_CARRIED)
        first = Block("y", carried, ClassMixture(classes, carried))
    elif size > classes:
        first = Block("y", classes, Given(_LABEL_SCALE))
    else:
        raise InputError(f"got {classes} classes of {size} numbers; expected fewer classes; try law='mixture'")
    return [first, *([Block(rest, size - first.size)] if size > first.size else [])]


def _dense(size: int, key: jax.Array, scalar: str = "spline", **sizes: Any) -> list[Bijection]:
    """Principal axes, couplings, and the rotation that makes the couplings start as the identity."""
    flow = coupling_flow(size, scalar=_SCALARS[scalar], **sizes, key=key)
    turned = flow.encode(jnp.eye(size))[0]
    back = eqx.tree_at(lambda layer: layer.matrix.value, Orthogonal((size,), key=key), turned)
    return [PrincipalRotation((size,)), flow, back]


def table_model(unit: Affine, law: str, classes: int, *, key: Key, **sizes: Any) -> INN:
    """A model of rows; under the label law, rows with no more columns than classes get one padding column per class.

    Args:
        unit: standardises the rows.
        law: "mixture" or "label".
        classes: number of classes.
        key: random key of the initial weights.
        **sizes: sizes of the couplings.
    """
    dim = unit.shape[0]
    padded = classes if law == "label" and dim <= classes else 0
    first = Affine(
        jnp.concatenate([unit.loc.value, jnp.zeros(padded)]),
        jnp.concatenate([unit.scale.value, jnp.full(padded, _PAD_SCALE)]),
    )
    size = dim + padded
    left = [Block("x", dim), *([Block("pad", padded, Pad(_PAD_SCALE))] if padded else [])]
    return INN(left, _class_blocks(law, classes, size), Chain([first, *_dense(size, as_key(key), **sizes)]))


def image_model(
    shape: tuple[int, int, int], bits: int, law: str, classes: int, *, width: int, key: Key, **sizes: Any
) -> INN:
    """A model of images; the leading principal directions go through dense couplings and carry the label."""
    coarse_key, key = jax.random.split(as_key(key))
    levels = 0
    while max(shape[:2]) // 2**levels > _MOST_COARSE and all(side % 2 ** (levels + 1) == 0 for side in shape[:2]):
        levels += 1

    def dense(dim):
        return Chain(_dense(dim, coarse_key, width=width, **sizes))

    if levels:
        local = max(width // 4, 16)
        bijection = wavelet(shape, levels=levels, width=local, features=local, leading=dense, key=key)
    else:
        dim = math.prod(shape)
        bijection = Chain([Reshape(shape, (dim,)), dense(dim)])
    coarsest, *grids = bijection.block_shapes
    details = [Block(f"z_{i + 1}", grid) for i, grid in enumerate(grids)]
    right = [*_class_blocks(law, classes, math.prod(coarsest), rest="z_0"), *details]
    return INN([Block("image", shape, Pixels(bits))], right, bijection)


# -- closed-form start ------------------------------------------------------------------------------------------------


@eqx.filter_jit
def _encode(model, x):
    return model.encode(x, key=0)


def fit_start(model: INN, x: Array | np.ndarray, labels: Int[np.ndarray, " n"]) -> INN:
    """Fit the class law to the principal components of rows, which makes the model a quadratic discriminant analysis.

    Args:
        model: a model of `table_model` or `image_model`, with its closed-form layers fitted. A model with the label law
            has no such start and is returned unchanged.
        x: labelled rows, or images.
        labels: their classes.
    """
    block = model.partition.right[0]
    if not isinstance(block.law, ClassMixture):
        return model
    z = _encode(model, x)[block.name]
    # shrunk in the units of the rows or pixels, so that a nearly constant column has little influence
    layers = jax.tree.leaves(level_part(0)(model), is_leaf=lambda layer: isinstance(layer, PrincipalRotation))
    axes = next(layer for layer in layers if isinstance(layer, PrincipalRotation))
    law = block.law.fit(z, labels, np.sqrt(axes.variances[: block.size]))
    return eqx.tree_at(class_law, model, law)


# -- evaluation -------------------------------------------------------------------------------------------------------


def padding_draws(model: INN, key: Key = 0) -> Float[Array, "m 1 k"]:
    """Fixed draws of the padding, over which p(x | class) is averaged; they do not depend on the batch."""
    pad = model.partition.left[1]
    return pad.law.prepare(as_key(key), None, (_PAD_DRAWS, 1), pad.shape)


@eqx.filter_jit
def look_at_rows(model: INN, rows: Array, key: Array) -> Float[Array, "n k"]:
    """Log p(x | class) of rows, averaged over a few draws of the padding."""
    if len(model.partition.left) == 1:
        return class_log_probs(model, rows, key=key)
    pad, draws = model.partition.left[1], padding_draws(model, key)
    left = {
        "x": jnp.broadcast_to(rows, (_PAD_DRAWS, *rows.shape)),
        "pad": jnp.broadcast_to(draws, (_PAD_DRAWS, len(rows), *pad.shape)),
    }
    return jax.nn.logsumexp(class_log_probs(model, left), axis=0) - jnp.log(_PAD_DRAWS)


@eqx.filter_jit
def look_at_mixed(model: INN, mixed: Mixed, points: Array, rows: Array, key: Array) -> Float[Array, "n k"]:
    """Log p(x | class) of rows with discrete columns, averaged over draws of the continuous rows that represent them.

    All classes share the draws, so that most of the sampling error cancels in ratios of probabilities.
    """
    return mixed.averaged(lambda drawn: look_at_rows(model, drawn, key), rows, points)


@eqx.filter_jit
def look_at_images(model: INN, pixels: Array, log_prior: Array, key: Array) -> tuple[Array, Array]:
    """Log p(x | class) of images, `(n, K)`, and the features for the detector, `(n, 1 + k)`.

    The first feature is the distance of the class block from the likeliest class: the log of the root mean square of
    its residual. It is a feature of its own, since pooled with all other numbers it would hardly count. The others are
    the `level_features`. Those of the coarsest level also use the residual, so that the score does not depend on the
    class.
    """
    right = model.right_end(model.left_end(pixels, key=key))
    terms = class_block_log_probs(model, right)
    coarse = [block.name for block in coarse_blocks(model)]
    joint = sum((terms[name] for name in coarse), log_prior)
    own = _residual(model, right.blocks["y"], jnp.argmax(joint, axis=-1))
    residual = jnp.concatenate([own, *(right.blocks[name] for name in coarse[1:])], axis=-1)
    details = {name: term[..., 0] for name, term in terms.items() if name not in coarse}
    levels = [
        (residual, jax.nn.logsumexp(joint, axis=-1)),
        *((right.blocks[name], term) for name, term in details.items()),
    ]
    rest = sum(details.values(), jnp.zeros(len(own)))
    features = jnp.concatenate([log_spread(own), level_features(levels)], axis=-1)
    return joint - log_prior + rest[:, None], features


def coarse_blocks(model: INN) -> list[Block]:
    """The right-hand blocks of the coarsest level of an image: the one that carries the class, and the others."""
    return [block for block in model.partition.right if block.name in ("y", "z_0")]


def _residual(model, y, label):
    """The whitened residual of the class block given the class."""
    law = class_law(model)
    if isinstance(law, ClassMixture):
        return law.residual(y, y.shape[1:], label)
    return (y - jax.nn.one_hot(label, y.shape[-1])) / _LABEL_SCALE


def coarse_part(model: INN) -> Any:
    """The part of an image model that belongs to its coarsest level: layers and class law."""
    return [*level_part(0)(model), class_law(model)]
