"""Masked autoregressive flows: every element is transformed given the previous ones."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowknife import nets
from flowknife._types import Key, Shape, as_key
from flowknife.bijections._base import Bijection, promoted, sum_event
from flowknife.bijections._elementwise import Scalar


class MaskedAutoregressive(Bijection):
    """y_i = f(x_i; net(x_1 ... x_{i-1}, cond)_i), with one masked network for all i.

    Papamakarios et al. 2017, arXiv 1705.07057. `encode` is one pass (fast density), `decode` takes one pass per
    element. `Inverse(MaskedAutoregressive(...))` is the inverse autoregressive flow (Kingma et al. 2016, arXiv
    1606.04934): fast sampling, slow density.

    Args:
        dim: length of the event vector.
        scalar: the elementwise map f.
        width: hidden units per layer.
        depth: hidden layers.
        cond_dim: length of the condition vector, 0 for none.
        key: random key of the initial weights.
    """

    scalar: Scalar
    net: nets.MaskedMLP
    shape: Shape = eqx.field(static=True)

    def __init__(
        self, dim: int, scalar: Scalar, *, width: int = 64, depth: int = 2, cond_dim: int = 0, key: Key = None
    ):
        self.scalar, self.shape = scalar, (dim,)
        self.net = nets.MaskedMLP(dim, scalar.num_params, cond_dim, width=width, depth=depth, key=as_key(key))

    @property
    def cond_shape(self) -> Shape | None:
        return self.net.cond_shape

    def encode(self, x, cond=None):
        y, log_det = self.scalar.encode(x, self.net(x, cond))
        return y, sum_event(log_det, self.shape)

    def decode(self, y, cond=None):
        y, cond = promoted(self.net, y, cond)

        # element i is final after pass i + 1, since its parameters depend only on previous elements
        def step(_, x):
            return self.scalar.decode(y, self.net(x, cond))[0]

        x = jax.lax.fori_loop(0, int(np.prod(self.shape)), step, jnp.zeros_like(y))
        return x, sum_event(self.scalar.encode(x, self.net(x, cond))[1], self.shape)
