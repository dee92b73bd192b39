"""READ FIRST: the one model behind every job.

An invertible network maps its *left end* (the data) to its *right end* (latents, labels, observations) and back. Each
end is a list of named blocks; a `Partition` divides the numbers at both ends into these blocks:

    left:   where each block's values come from    Data, Pixels, Noise, Pad
    right:  the law of each block                  Normal, Given, ClassMixture, Padding
    cond:   inputs of every coupling               (conditions are outside of the Jacobian)

A job is defined by these lists alone:

    density                 x            <->  z
    images                  pixels       <->  z_0 ... z_L
    ... of a class          pixels       <->  z_0 ... z_L      cond: y
    classification          x (+ pad)    <->  y (label), z
    inverse problem         x            <->  y (data), z
    ... with noisy data     x, noise     <->  y (data + the same noise), z

and so are all operations:

    log_prob(x, y=...)  =  sum of the laws' log densities at encode(x) + log_det
    block_log_probs     =  the terms of this sum, one for each right-hand block
    sample(key, n, y=y) =  draw each block from its law (known blocks around their value), then decode
    encode(x)["y"]      =  the forward prediction
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowknife._types import Key, Shape, as_key, as_shape, error_in_words
from flowknife.bijections import Bijection
from flowknife.errors import InputError
from flowknife.laws import Data, Given, Law, Noise, Normal, Source, Temperature, as_temperature, beyond_range

Blocks = dict[str, Array]


class LeftEnd(NamedTuple):
    """The left end, prepared for the network: noise drawn, images dequantised.

    Attributes:
        blocks: the left-hand blocks by name.
        known: right-hand blocks and conditions that were given, by name.
        array: the blocks as one array `(*batch, *shape of the bijection)`.
        cond: the conditions as one array, or None.
    """

    blocks: Blocks
    known: Blocks
    array: Array
    cond: Array | None


class RightEnd(NamedTuple):
    """The right end, with each block's share of the log-determinant.

    Attributes:
        blocks: the right-hand blocks by name.
        log_dets: the shares by name, each of shape `batch`; their sum is log|det d(right)/d(left)| minus the log
            density of the dequantisation noise on the left.
        missing: rows with NaN in the data or the known values, bool of shape `batch`.
    """

    blocks: Blocks
    log_dets: Blocks
    missing: Array


class Block(eqx.Module):
    """A named group of numbers at one end.

    Args:
        name: name of the block in arguments and results.
        shape: event shape; an int n means a vector of length n.
        law: on the right a law (default `Normal()`), on the left a source (default `Data()`), none for a condition.
    """

    name: str = eqx.field(static=True)
    shape: Shape = eqx.field(static=True)
    law: Any

    def __init__(self, name: str, shape: int | Shape, law: Law | Source | None = None):
        self.name, self.shape, self.law = name, as_shape(shape), law

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape))

    @property
    def given_shape(self) -> Shape:
        """Event shape of the value that the caller passes: the block's own, unless it is a label."""
        return self.law.given_shape(self.shape) if isinstance(self.law, Law) else self.shape


_ARGUMENTS = ("self", "x", "z", "key", "n", "temperature")  # of the methods of `INN`, which take conditions by name too


def _with_default(blocks, kind, default):
    filled = tuple(block if block.law is not None else Block(block.name, block.shape, default) for block in blocks)
    for block in filled:
        if not isinstance(block.law, kind):
            raise InputError(
                f"got {type(block.law).__name__} as the law of block {block.name!r}; expected a {kind.__name__}; try "
                f"{default!r}"
            )
    return filled


class Partition(eqx.Module):
    """The blocks at the two ends of a network, and its conditions.

    Args:
        left: blocks of data (`Data`, `Pixels`) and blocks drawn by the model (`Noise`, `Pad`).
        right: blocks with their laws.
        cond: blocks that condition the couplings (*conditional* form).

    Raises:
        InputError: for ends of different size, repeated names, or a law at the wrong end.
    """

    left: tuple[Block, ...]
    right: tuple[Block, ...]
    cond: tuple[Block, ...]

    def __init__(self, left: Sequence[Block], right: Sequence[Block], cond: Sequence[Block] = ()):
        self.left = _with_default(left, Source, Data())
        self.right = _with_default(right, Law, Normal())
        self.cond = tuple(cond)
        for block in self.cond:
            if block.law is not None:
                raise InputError(
                    f"got {type(block.law).__name__} as the law of the condition {block.name!r}; expected none, since "
                    f'a condition is given as it is; try Block("{block.name}", {block.shape})'
                )
        if taken := [block.name for block in self.cond if block.name in _ARGUMENTS]:
            raise InputError(
                f"got a condition named {taken[0]!r}; expected another name, since methods have such an argument"
            )
        names = [block.name for block in (*self.left, *self.right, *self.cond)]
        if len(set(names)) != len(names):
            raise InputError(f"got block names {names}; expected each name once")
        if not self.data:
            raise InputError(f"got no data among {[block.name for block in self.left]}; expected a block that is given")
        for block in self.left:
            target = block.law.added_to if isinstance(block.law, Noise) else None
            if target is not None and target not in [k.name for k in self.known if k.shape == block.shape]:
                raise InputError(
                    f"got noise added to {target!r}; expected the name of a known block of shape {block.shape}"
                )
        sizes = [sum(block.size for block in end) for end in (self.left, self.right)]
        if sizes[0] != sizes[1]:
            raise InputError(
                f"got {sizes[0]} numbers on the left and {sizes[1]} on the right; expected as many at both ends; try "
                'a Block("pad", n, Pad()) at the shorter end on the left, or a larger latent on the right'
            )

    @property
    def data(self) -> tuple[Block, ...]:
        """The left-hand blocks that the caller passes."""
        return tuple(block for block in self.left if not block.law.drawn)

    @property
    def known(self) -> tuple[Block, ...]:
        """Blocks that the caller may pass by name: known right-hand blocks and conditions."""
        return (*(block for block in self.right if block.law.known), *self.cond)

    @property
    def cond_shape(self) -> Shape | None:
        """Event shape of the condition that the bijection receives; None without conditions."""
        if len(self.cond) == 1:
            return self.cond[0].shape
        return (sum(block.size for block in self.cond),) if self.cond else None


def _pack(blocks: Sequence[Block], values: Mapping[str, Array], batch: Shape, shape: Shape) -> Array:
    """The blocks as one array `(*batch, *shape)`."""
    flat = [values[block.name].reshape(*batch, block.size) for block in blocks]
    return jnp.concatenate(flat, axis=-1).reshape(*batch, *shape)


def _unpack(blocks: Sequence[Block], array: Array, batch: Shape) -> Blocks:
    """The inverse of `_pack`."""
    ends = np.cumsum([block.size for block in blocks])[:-1]
    parts = jnp.split(array.reshape(*batch, sum(block.size for block in blocks)), ends, axis=-1)
    return {block.name: part.reshape(*batch, *block.shape) for block, part in zip(blocks, parts, strict=True)}


@eqx.filter_jit  # traced, never compiled; models of equal structure are traced once
def _both_ways(model):
    """Log density and draws of two items."""
    valued = [block for block in model.partition.right if isinstance(block.law, Given)]  # without a value no density
    given = {block.name: jnp.zeros((2, *block.shape)) for block in (*model.partition.cond, *valued)}
    x = {block.name: jnp.zeros((2, *block.shape)) for block in model.partition.data}
    return model.log_prob(x, key=0, **given), model.sample_left(0, () if given else 2, **given)


@eqx.filter_jit
def _initialise(model, x, key, given):
    return model.initialise(x, key=key, **given)


class INN(eqx.Module):
    """An invertible network between two partitioned ends.

    Args:
        left: blocks of the left end, see `Partition`.
        right: blocks of the right end.
        bijection: maps the left end to the right end; blocks are concatenated in their order and take its shapes.
        cond: blocks that condition the couplings, concatenated to one vector (a single block keeps its shape).

    Raises:
        InputError: if the bijection's size is not that of the ends, or its `cond_shape` not that of the conditions.

    Examples:
        >>> import flowknife as fk
        >>> flow = fk.architectures.coupling_flow(2, layers=2, key=0)
        >>> inn = fk.INN(left=[fk.Block("x", 2)], right=[fk.Block("z", 2)], bijection=flow)
        >>> inn.sample(0, 5).shape
        (5, 2)
    """

    partition: Partition
    bijection: Bijection

    def __init__(
        self,
        left: Sequence[Block],
        right: Sequence[Block],
        bijection: Bijection,
        cond: Sequence[Block] = (),
    ):
        self.partition, self.bijection = Partition(left, right, cond), bijection
        size = sum(block.size for block in self.partition.left)
        if int(np.prod(bijection.shape)) != size:
            raise InputError(
                f"got a bijection of shape {bijection.shape} between ends of {size} numbers; expected as many elements"
            )
        self._check_condition()

    def encode(self, x: Any, *, key: Key = None, **given: Any) -> Blocks:
        """Left to right: the right-hand blocks of data `x`.

        Args:
            x: the data block, an array `(*batch, *shape)`, or a dict of left-hand blocks by name.
            key: random key for noise, padding and dequantisation.
            **given: conditions by name; other known values are accepted, but not used.

        Returns:
            the right-hand blocks by name.
        """
        return self.right_end(self.left_end(x, key=key, **given)).blocks

    def decode(self, z: Any, **given: Any) -> Blocks:
        """Right to left: the left-hand blocks of right-hand blocks `z`.

        Args:
            z: the only right-hand block, or a dict of all of them by name.
            **given: conditions by name.

        Returns:
            the left-hand blocks by name, images as whole numbers.
        """
        left, _ = self.decode_end(z, **given)
        return {block.name: block.law.restore(left[block.name]) for block in self.partition.left}

    def log_prob(self, x: Any, *, key: Key = None, **given: Any) -> Array:
        """Normalised conditional log density of the left end given the known values, in nats, of shape `batch`.

        Args:
            x: as for `encode`. Images: the log-probability of the discrete image (a lower bound, with noise from
                `key`). Noise blocks: the joint density of data and noise.
            key: as for `encode`.
            **given: known right-hand blocks and conditions by name. A `ClassMixture` without its label is summed over
                the classes.

        Values too large for the precision have -inf, rows with NaN have NaN.
        """
        left = self.left_end(x, key=key, **given)
        right = self.right_end(left)
        first, *others = self.block_terms(right, **left.known).values()
        return beyond_range(sum(others, first), right.missing)

    def block_log_probs(self, x: Any, *, key: Key = None, **given: Any) -> Blocks:
        """The terms of `log_prob`, one for each right-hand block: its law's log density plus its share of log_det.

            log p(x | y) = sum_b [log p_b(z_b) + log_det_b],   z = encode(x)

        The blocks of a multi-scale flow are its levels, and each term is log p(level | coarser levels).

        Args:
            x: as for `log_prob`.
            key: as for `encode`.
            **given: as for `log_prob`.

        Returns:
            arrays of shape `batch` by the name of the block, in nats.
        """
        left = self.left_end(x, key=key, **given)
        return self.block_terms(self.right_end(left), **left.known)

    def sample(
        self, key: Key, n: int | Shape = (), *, temperature: Temperature | Mapping[str, Temperature] = 1.0, **given: Any
    ) -> Any:
        """Draw from the model given the known values: `sample(key, 1000, y=y_observed)` is a posterior.

        Args:
            key: int, JAX key or None.
            n: number of draws, or their shape; () for one.
            temperature: scale of the draws around the mode of each law, one number or one per right-hand block by name,
                from 0 to 1e6.
            **given: known right-hand blocks and conditions; each may carry batch axes of its own, which follow `n`.

        Returns:
            array `(*n, *batch of the given, *shape)` if there is one data block, otherwise a dict of left-hand blocks.
        """
        blocks = self.sample_left(key, n, temperature=temperature, **given)
        data = self.partition.data
        return blocks[data[0].name] if len(data) == 1 else {block.name: blocks[block.name] for block in data}

    def sample_left(
        self, key: Key, n: int | Shape = (), *, temperature: Temperature | Mapping[str, Temperature] = 1.0, **given: Any
    ) -> Blocks:
        """Like `sample`, but returns all left-hand blocks by name, including noise and padding."""
        given = self._check_given(given)
        names = [block.name for block in self.partition.right]
        if isinstance(temperature, Mapping) and not set(temperature) <= set(names):
            raise InputError(f"got temperatures of {sorted(temperature)}; expected names among {names}")
        batches = [np.shape(value)[: np.ndim(value) - len(block.given_shape)] for block, value in self._pairs(given)]
        batch = (*as_shape(n), *jnp.broadcast_shapes(*batches))
        keys = jax.random.split(as_key(key), len(self.partition.right))
        right = {}
        for block, block_key in zip(self.partition.right, keys, strict=True):
            t = temperature.get(block.name, 1.0) if isinstance(temperature, Mapping) else temperature
            right[block.name] = block.law.sample(
                block_key, batch, block.shape, given.get(block.name), as_temperature(t)
            )
        given = {
            block.name: jnp.broadcast_to(value, (*batch, *block.given_shape)) for block, value in self._pairs(given)
        }
        return self.decode(right, **given)

    def initialise(self, x: Any, *, key: Key = None, **given: Any) -> "INN":
        """Fit closed-form parameters (actnorm, principal rotations) to one batch of data."""
        left = self.left_end(x, key=key, **given)
        fitted, _ = self.bijection.initialise(left.array, left.cond)
        return eqx.tree_at(lambda inn: inn.bijection, self, fitted)

    def initialised(self, x: Any, *, key: Key = None, **given: Any) -> "INN":
        """`initialise`, compiled; models and data of equal shapes share one program."""
        return _initialise(self, x, as_key(key), given)

    def require_sound(self) -> None:
        """Check that ends, conditions and layers fit together, which a damaged file may violate; only traces.

        Raises:
            InputError: the ends, the conditions or the layers do not fit.
        """
        ends = self.partition
        INN(ends.left, ends.right, self.bijection, ends.cond)
        try:
            log_prob, drawn = eqx.filter_eval_shape(_both_ways, self)
        except Exception as error:  # incompatible layers raise many kinds of errors
            raise InputError(f"got a model whose layers do not fit ({error_in_words(error)})") from None
        shapes = {block.name: (2, *block.shape) for block in ends.left}
        if log_prob.shape != (2,) or {name: array.shape for name, array in drawn.items()} != shapes:
            raise InputError("got a model whose layers do not fit its ends; expected numbers for each of them")

    def _check_condition(self):
        """Refuse a condition that the bijection would ignore."""
        names, given = [block.name for block in self.partition.cond], self.partition.cond_shape
        taken = self.bijection.cond_shape
        if given == taken:
            return
        kind = type(self.bijection).__name__
        if taken is None:
            raise InputError(
                f"got the conditions {names} of shape {given} and a bijection ({kind}) that takes none; expected one "
                f"that takes them; try cond_dim={math.prod(given or ())} of the architecture"
            )
        if given is None:
            raise InputError(
                f"got no condition and a bijection ({kind}) that takes one of shape {taken}; expected a block for it; "
                f'try cond=[Block("y", {taken})]'
            )
        raise InputError(
            f"got the conditions {names} of shape {given} and a bijection ({kind}) that takes one of shape {taken}; "
            "expected equal shapes"
        )

    # -- the ends in the form of the network: continuous, with log-determinants --------------------------------------

    def left_end(self, x: Any, *, key: Key = None, **given: Any) -> LeftEnd:
        """Data, drawn noise and conditions, ready for the bijection; arguments of `log_prob`."""
        known = self._check_given(given)
        values = _as_blocks(x, self.partition.data, "data", extra=[block.name for block in self.partition.left])
        batch = _batch_of(values, [block for block in self.partition.left if block.name in values])
        self._require_batch(known, batch)
        left = {}
        drawn = not all(isinstance(block.law, Data) for block in self.partition.left)
        count = len(self.partition.left)
        keys = jax.random.split(as_key(key), count) if drawn else [None] * count
        for block, block_key in zip(self.partition.left, keys, strict=True):
            left[block.name] = block.law.prepare(block_key, values.get(block.name), batch, block.shape)
            target = block.law.added_to if isinstance(block.law, Noise) else None
            if target in known and block.name not in values:
                known[target] = known[target] + left[block.name]
        array = _pack(self.partition.left, left, batch, self.bijection.shape)
        array = array.astype(jnp.result_type(array, float))  # integers are valid data too
        return LeftEnd(left, known, array, self._condition(known))

    def right_end(self, left: LeftEnd) -> RightEnd:
        """The right-hand blocks of a left end, each with its share of the log-determinant.

        The log-determinant of a block of the bijection, see `Bijection.encode_blocks`, belongs to the right-hand block
        in which it begins; the log density of noise on the left belongs to the last one.
        """
        found = self.bijection.encode_blocks(left.array, left.cond)
        batch = left.array.shape[: left.array.ndim - len(self.bijection.shape)]
        sizes = [int(np.prod(shape)) for shape in self.bijection.block_shapes]
        flat = jnp.concatenate([z.reshape(*batch, size) for (z, _), size in zip(found, sizes, strict=True)], axis=-1)
        ends = np.cumsum([block.size for block in self.partition.right])
        log_dets = {block.name: jnp.zeros(batch, flat.dtype) for block in self.partition.right}
        for (_, terms), start in zip(found, np.cumsum(sizes) - sizes, strict=True):
            name = self.partition.right[int(np.searchsorted(ends, start, side="right"))].name
            log_dets[name] = sum(terms, log_dets[name])
        last = self.partition.right[-1].name
        for block in self.partition.left:
            log_dets[last] = log_dets[last] - block.law.log_noise(left.blocks[block.name], block.shape)
        numbers = [(left.array, self.bijection.shape)]
        numbers += [(value, block.given_shape) for block, value in self._pairs(left.known)]
        missing = jnp.zeros(batch, bool)
        for value, shape in numbers:
            missing |= jnp.any(jnp.isnan(value), axis=tuple(range(value.ndim - len(shape), value.ndim)))
        return RightEnd(_unpack(self.partition.right, flat, batch), log_dets, missing)

    def block_terms(self, right: RightEnd, /, **known: Any) -> Blocks:
        """`block_log_probs` of a right end, given known right-hand blocks by name."""
        terms = {}
        for block in self.partition.right:
            log_prob = block.law.log_prob(right.blocks[block.name], block.shape, known.get(block.name))
            terms[block.name] = beyond_range(log_prob + right.log_dets[block.name], right.missing)
        return terms

    def decode_end(self, z: Any, **given: Any) -> tuple[Blocks, Array]:
        """Like `decode`, but returns the continuous left-hand blocks, and log|det d(right)/d(left)|."""
        right = _as_blocks(z, self.partition.right, "right-hand")
        batch, known = _batch_of(right, self.partition.right), self._check_given(given)
        self._require_batch(known, batch)
        array = _pack(self.partition.right, right, batch, self.bijection.out_shape)
        left, log_det = self.bijection.decode(array, self._condition(known))
        return _unpack(self.partition.left, left, batch), log_det

    def _condition(self, known):
        parts = [(block, known[block.name]) for block in self.partition.cond if block.name in known]
        if len(parts) < len(self.partition.cond):
            missing = [block.name for block in self.partition.cond if block.name not in known]
            raise InputError(f"got no value of {missing}; expected every condition; try {missing[0]}=...")
        if not parts:
            return None
        if len(parts) == 1:
            return parts[0][1]
        flat = [value.reshape(*value.shape[: value.ndim - len(block.shape)], block.size) for block, value in parts]
        batch = jnp.broadcast_shapes(*(value.shape[:-1] for value in flat))
        return jnp.concatenate([jnp.broadcast_to(value, (*batch, value.shape[-1])) for value in flat], axis=-1)

    def _require_batch(self, known, batch):
        """Refuse known values unless there is one for all rows, or one for each row."""
        for block, value in self._pairs(known):
            own = value.shape[: value.ndim - len(block.given_shape)]
            if len(own) > len(batch) or any(a not in (1, b) for a, b in zip(own[::-1], batch[::-1], strict=False)):
                raise InputError(
                    f"got {block.name!r} of shape {value.shape} for rows of batch shape {batch}; expected one value, "
                    "or one for each row"
                )

    def _pairs(self, given):
        return [(block, given[block.name]) for block in self.partition.known if block.name in given]

    def _check_given(self, given):
        names = [block.name for block in self.partition.known]
        unknown = [name for name in given if name not in names]
        if unknown:
            raise InputError(f"got a value of {unknown[0]!r}; expected one of {names or 'no known blocks'}")
        given = {name: jnp.asarray(value) for name, value in given.items() if value is not None}
        for block, value in self._pairs(given):
            expected = block.given_shape
            if value.shape[value.ndim - len(expected) :] != expected:
                raise InputError(f"got {block.name!r} of shape {value.shape}; expected (..., *{expected})")
        return given


def _as_blocks(values, blocks, what, extra=()):
    if not isinstance(values, Mapping):
        if len(blocks) != 1:
            names = [block.name for block in blocks]
            raise InputError(f"got one array for the {what} blocks {names}; expected a dict of arrays by name")
        values = {blocks[0].name: values}
    allowed = {*extra, *(block.name for block in blocks)}
    missing = [block.name for block in blocks if block.name not in values]
    unknown = [name for name in values if name not in allowed]
    if missing or unknown:
        raise InputError(f"got {what} blocks {sorted(values)}; expected {sorted(block.name for block in blocks)}")
    return {name: jnp.asarray(value) for name, value in values.items()}


def _batch_of(values: Mapping[str, Array], blocks: Sequence[Block]) -> Shape:
    """The batch shape that all blocks share."""
    first = blocks[0]
    batch = values[first.name].shape[: values[first.name].ndim - len(first.shape)]
    for block in blocks:
        if values[block.name].shape != (*batch, *block.shape):
            raise InputError(
                f"got {block.name!r} of shape {values[block.name].shape}; expected {(*batch, *block.shape)}, or "
                f"(batch, {', '.join(map(str, block.shape))})"
            )
    return batch
