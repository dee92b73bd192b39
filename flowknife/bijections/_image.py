"""Bijections of images, shape (height, width, channels): squeeze, Haar, 1x1 convolutions and factoring out."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowknife._types import Key, Shape, as_shape
from flowknife.bijections._base import (
    Bijection,
    BlockParts,
    batch_of,
    encode_terms,
    join_blocks,
    merge_cond_shapes,
    net_cond_shape,
    net_out_shape,
)
from flowknife.bijections._coupling import Channels, Checkerboard
from flowknife.bijections._linear import LU, Matrix
from flowknife.errors import InputError

# Rows: coarse, horizontal, vertical and diagonal detail of the pixels (0,0), (0,1), (1,0), (1,1) of a 2x2 block.
_HAAR = 0.5 * np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])


def _space_to_depth(x, shape):
    """(..., H, W, C) -> (..., H/2, W/2, 4, C), the 4 pixels of each 2x2 block in row-major order."""
    height, width, channels = shape
    batch = x.shape[:-3]
    x = x.reshape(*batch, height // 2, 2, width // 2, 2, channels)
    return jnp.swapaxes(x, -4, -3).reshape(*batch, height // 2, width // 2, 4, channels)


def _depth_to_space(x, shape):
    """The inverse of `_space_to_depth`; `shape` is the shape (H, W, C) of the result."""
    height, width, channels = shape
    batch = x.shape[:-4]
    x = x.reshape(*batch, height // 2, width // 2, 2, 2, channels)
    return jnp.swapaxes(x, -4, -3).reshape(*batch, height, width, channels)


class Squeeze(Bijection):
    """(H, W, C) -> (H/2, W/2, 4C): each 2x2 block of pixels becomes channels; log_det = 0.

    Dinh et al. 2017, arXiv 1605.08803, fig. 3.

    Args:
        shape: event shape (height, width, channels), height and width even.
    """

    shape: Shape = eqx.field(static=True)

    def __init__(self, shape: Shape):
        self.shape = as_shape(shape)
        if len(self.shape) != 3 or self.shape[0] % 2 or self.shape[1] % 2:
            raise InputError(f"got shape {self.shape}; expected (height, width, channels), height and width even")

    @property
    def out_shape(self) -> Shape:
        height, width, channels = self.shape
        return (height // 2, width // 2, 4 * channels)

    def encode(self, x, cond=None):
        y = _space_to_depth(x, self.shape)
        return y.reshape(*y.shape[:-2], -1), jnp.zeros(batch_of(x, self.shape), x.dtype)

    def decode(self, y, cond=None):
        blocks = y.reshape(*y.shape[:-1], 4, self.shape[2])
        return _depth_to_space(blocks, self.shape), jnp.zeros(batch_of(y, self.out_shape), y.dtype)


class Haar(Bijection):
    """Orthonormal Haar transform of each 2x2 block: (H, W, C) -> (H/2, W/2, 4C); log_det = 0.

    The first C channels are the coarse image (twice the block's mean), the other 3C its horizontal, vertical and
    diagonal details.

    Args:
        shape: event shape (height, width, channels), height and width even.
    """

    squeeze: Squeeze

    def __init__(self, shape: Shape):
        self.squeeze = Squeeze(shape)

    @property
    def shape(self) -> Shape:
        return self.squeeze.shape

    @property
    def out_shape(self) -> Shape:
        return self.squeeze.out_shape

    def _mix(self, x):
        # the matrix is symmetric and orthogonal: its own inverse
        blocks = x.reshape(*x.shape[:-1], 4, self.shape[2])
        return jnp.einsum("ij,...jc->...ic", jnp.asarray(_HAAR, x.dtype), blocks).reshape(x.shape)

    def encode(self, x, cond=None):
        y, log_det = self.squeeze.encode(x)
        return self._mix(y), log_det

    def decode(self, y, cond=None):
        return self.squeeze.decode(self._mix(y))


class InvertibleConv1x1(Bijection):
    """y = W x at every pixel, the invertible 1x1 convolution (Kingma & Dhariwal 2018, arXiv 1807.03039, sec. 3.2).

    Args:
        shape: event shape (height, width, channels).
        form: "plu" (triangular factors, `LU`) or "plain" (`Matrix`).
        key: random key of the initial rotation.
    """

    linear: LU | Matrix

    def __init__(self, shape: Shape, form: str = "plu", *, key: Key = None):
        if form not in ("plu", "plain"):
            raise InputError(f'got form={form!r}; expected "plu" or "plain"')
        self.linear = LU(shape, key=key) if form == "plu" else Matrix(shape, key=key)

    @property
    def shape(self) -> Shape:
        return self.linear.shape

    def encode(self, x, cond=None):
        return self.linear.encode(x)

    def decode(self, y, cond=None):
        return self.linear.decode(y)


class Split(Bijection):
    """Factor out: one part goes to the latent end, the other part continues through `inner`.

        kept, moved = split(x)
        y = [inner(kept; cond), factored(moved; cond = context(kept, cond))]      as one flat vector

    With `factored=None` it is the factor-out of RealNVP (arXiv 1605.08803, sec. 3.6). With a conditional affine
    coupling in `factored` it is Glow's learned prior. After a Haar transform, kept is the coarse image and moved its
    details, and nested Splits are a wavelet flow (Yu et al. 2020, arXiv 2010.13821).

    Args:
        split: the split into (kept, moved).
        inner: bijection of the kept part.
        factored: bijection of the moved part, with the (embedded) kept part as its condition; default: identity.
        context: network that computes this condition, called as `context(kept)`, or `context(kept, cond)` if it has a
            `cond_shape`; default: the kept part itself.

    Raises:
        InputError: for parts whose shapes differ from those of the split, or conditions that do not fit.
    """

    split: Channels | Checkerboard
    inner: Bijection
    factored: Bijection | None
    context: Callable[..., Array] | None

    def __init__(
        self,
        split: Channels | Checkerboard,
        inner: Bijection,
        factored: Bijection | None = None,
        context: Callable[..., Array] | None = None,
    ):
        self.split, self.inner, self.factored, self.context = split, inner, factored, context
        if inner.shape != split.kept_shape or (factored is not None and factored.shape != split.moved_shape):
            raise InputError(
                f"got inner of shape {inner.shape} and factored of shape {factored and factored.shape}; expected the "
                f"shapes of the kept and moved parts, {split.kept_shape} and {split.moved_shape}"
            )
        merge_cond_shapes([inner, context])
        if factored is not None and factored.cond_shape is not None:
            _require_condition(
                factored, split.kept_shape if context is None else _context_shape(context, split.kept_shape)
            )

    @property
    def shape(self) -> Shape:
        return self.split.shape

    @property
    def out_shape(self) -> Shape:
        return (int(np.prod(self.shape)),)

    @property
    def cond_shape(self) -> Shape | None:
        return merge_cond_shapes([self.inner, self.context])

    def condition(self, kept, cond=None):
        """The condition of the moved part, from the kept part `(*batch, *kept_shape)` and the condition `cond`."""
        return kept if self.context is None else _context_of(self.context, kept, cond)

    @property
    def block_shapes(self):
        moved = self.split.moved_shape if self.factored is None else self.factored.out_shape
        return (*self.inner.block_shapes, moved)

    @property
    def block_parts(self):
        shared, own = self.inner.block_parts
        return BlockParts(shared, (*own, tuple(p for p in (self.factored, self.context) if p is not None)))

    @property
    def coarsest(self):
        return self.inner.coarsest

    def encode_coarsest(self, x, cond=None):
        return self.inner.encode_coarsest(self.split.split(x)[0], cond)

    def encode(self, x, cond=None):
        return join_blocks(self.encode_blocks(x, cond), self.block_shapes)

    def encode_blocks(self, x, cond=None, *, before=(), local=False):
        # terms of the layers before the split belong to the finest block, which is factored out here
        kept, moved = self.split.split(x)
        if self.factored is None:
            terms = [] if before else [jnp.zeros(batch_of(x, self.shape), x.dtype)]
        else:
            moved, terms = encode_terms(self.factored, moved, self.condition(kept, cond), local)
        return [*self.inner.encode_blocks(kept, cond, local=local), (moved, [*before, *terms])]

    def decode(self, y, cond=None):
        batch = batch_of(y, self.out_shape)
        first, moved = jnp.split(y, [int(np.prod(self.inner.out_shape))], axis=-1)
        kept, log_det = self.inner.decode(first.reshape(*batch, *self.inner.out_shape), cond)
        moved = moved.reshape(*batch, *(self.split.moved_shape if self.factored is None else self.factored.out_shape))
        if self.factored is not None:
            moved, term = self.factored.decode(moved, self.condition(kept, cond))
            log_det = log_det + term
        return self.split.merge(kept, moved), log_det

    def initialise(self, x, cond=None):
        kept, moved = self.split.split(x)
        inner, _ = self.inner.initialise(kept, cond)
        factored = self.factored
        if factored is not None:
            factored, _ = factored.initialise(moved, self.condition(kept, cond))
        fitted = Split(self.split, inner, factored, self.context)
        return fitted, fitted.encode(x, cond)[0]


def _context_of(context, x, cond):
    """The output of a context network for `x`, and the condition if it takes one."""
    return context(x) if net_cond_shape(context) is None else context(x, cond)


def _context_shape(context, shape):
    own = net_cond_shape(context)
    return net_out_shape(context, *([shape] if own is None else [shape, own]))


def _require_condition(part, shape):
    """Refuse a part whose `cond_shape` differs from the shape of its condition."""
    if part.cond_shape not in (None, shape):
        given = "no condition" if shape is None else f"one of shape {shape}"
        raise InputError(
            f"got a {type(part).__name__} that takes a condition of shape {part.cond_shape} where it is given {given}; "
            "expected equal shapes"
        )


class CoarseToFine(Bijection):
    """An autoregression over blocks, each conditioned on the image reconstructed from the previous blocks.

        [y_0, y_1, ..., y_L] = transform(x)
        z_0 = part_0(y_0; cond)
        z_l = part_l(y_l; cond = context_l(transform^-1([y_0, ..., y_(l-1), 0, ..., 0]), cond))

    The log-determinant is the sum of those of the parts and of the transform. With a Haar pyramid as the transform it
    is a wavelet flow. Any transform that orders an image from coarse to fine is possible, and the context is always an
    image.

    Args:
        transform: bijection from the image to one flat vector, coarsest numbers first.
        parts: bijection of each block, from `(size,)`; the sizes add up to the length of the vector.
        contexts: network of each block but the first, from an image (and `cond`, if it has a `cond_shape`) to the
            condition of the part.

    Raises:
        InputError: for parts that do not add up, or conditions that do not fit.
    """

    transform: Bijection
    parts: tuple[Bijection, ...]
    contexts: tuple[Callable[..., Array], ...]

    def __init__(self, transform: Bijection, parts: Sequence[Bijection], contexts: Sequence[Callable[..., Array]]):
        self.transform, self.parts, self.contexts = transform, tuple(parts), tuple(contexts)
        sizes = [part.shape for part in self.parts]
        if (sum(size[0] for size in sizes),) != transform.out_shape or len(self.contexts) != len(self.parts) - 1:
            raise InputError(
                f"got parts of shapes {sizes} and {len(self.contexts)} contexts for a transform to "
                f"{transform.out_shape}; expected vectors that add up, and a context for each part but the first"
            )
        _require_condition(transform, None)
        merge_cond_shapes([self.parts[0], *self.contexts])
        for part, context in zip(self.parts[1:], self.contexts, strict=True):
            _require_condition(part, _context_shape(context, transform.shape))

    @property
    def shape(self) -> Shape:
        return self.transform.shape

    @property
    def out_shape(self) -> Shape:
        return self.transform.out_shape

    @property
    def cond_shape(self) -> Shape | None:
        return merge_cond_shapes([self.parts[0], *self.contexts])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Length of each block, coarsest first."""
        return tuple(part.shape[0] for part in self.parts)

    def split(self, y):
        """The blocks of a flat vector."""
        return jnp.split(y, np.cumsum(self.sizes)[:-1], axis=-1)

    def condition(self, blocks, level, cond=None):
        """The condition of the part of a block, from `cond` and the previous blocks on the left."""
        if level == 0:
            return cond
        known = jnp.concatenate(blocks[:level], axis=-1)
        unknown = [(0, 0)] * (known.ndim - 1) + [(0, self.out_shape[0] - known.shape[-1])]
        return _context_of(self.contexts[level - 1], self.transform.decode(jnp.pad(known, unknown))[0], cond)

    @property
    def block_shapes(self):
        return tuple(part.out_shape for part in self.parts)

    @property
    def block_parts(self):
        first, *others = self.parts
        return BlockParts((self.transform,), ((first,), *zip(others, self.contexts, strict=True)))

    def encode(self, x, cond=None):
        return join_blocks(self.encode_blocks(x, cond), self.block_shapes)

    def encode_blocks(self, x, cond=None, *, before=(), local=False):
        # terms of the transform, and of the layers before it, belong to the coarsest block
        y, terms = encode_terms(self.transform, x, None, local)
        parts, found, before = self.split(y), [], [*before, *terms]
        for level, part in enumerate(self.parts):
            z, terms = encode_terms(part, parts[level], self.condition(parts, level, cond), local)
            found.append((z, [*before, *terms]))
            before = []
        return found

    def decode(self, y, cond=None):
        blocks, log_det = [], jnp.zeros(batch_of(y, self.out_shape), y.dtype)
        for level, (part, z) in enumerate(zip(self.parts, self.split(y), strict=True)):
            z = z.reshape(*z.shape[:-1], *part.out_shape)
            block, term = part.decode(z, self.condition(blocks, level, cond))
            blocks.append(block)
            log_det = log_det + term
        x, term = self.transform.decode(jnp.concatenate(blocks, axis=-1))
        return x, log_det + term

    def initialise(self, x, cond=None):
        transform, y = self.transform.initialise(x)
        fitted = eqx.tree_at(lambda flow: flow.transform, self, transform)
        blocks = self.split(y)
        parts = [
            part.initialise(blocks[level], fitted.condition(blocks, level, cond))[0]
            for level, part in enumerate(self.parts)
        ]
        fitted = CoarseToFine(transform, parts, self.contexts)
        return fitted, fitted.encode(x, cond)[0]
