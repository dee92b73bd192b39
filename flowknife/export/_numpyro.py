"""A fitted flow as a distribution of NumPyro."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from flowknife._frame import Frame
from flowknife.bijections import Bijection
from flowknife.errors import InputError
from flowknife.inn import INN


def _density(model, x, **known):
    return model.log_prob(x, **known)


def numpyro_flow(
    model: INN,
    frame: Frame,
    known: Mapping[str, Any],
    prior: Bijection | None = None,
    density: Callable[..., Any] = _density,
) -> Any:
    """A `numpyro.distributions.Distribution` of vectors in the units of the data.

    Args:
        model: the network, from x in `frame`.
        frame: origin and scale of x.
        known: what the model is given, by name, one row.
        prior: of a posterior the bijection of its prior, in `frame`; then values stay in its support.
        density: `density(model, x, **known)`, the log density that is meant.

    Raises:
        InputError: NumPyro is not installed.
    """
    if frame.constant:
        raise InputError(
            f"got a column that never varies (column {frame.constant[0] + 1}), which has no density; expected columns "
            "that vary; try a fit without it"
        )
    given = {name: jnp.asarray(np.asarray(value).reshape(-1)) for name, value in known.items()}
    origin, scale = (jnp.asarray(np.asarray(part), jnp.float32) for part in (frame.origin, frame.scale))
    return _classes()[0](model, origin, scale, given, prior, density)


@functools.cache
def _classes() -> tuple[Any, Any]:
    """The classes of the distribution and of its support, made when NumPyro is first asked for."""
    try:
        import numpyro.distributions as dist
        from numpyro.distributions import constraints
        from numpyro.distributions.transforms import Transform, biject_to
    except ImportError:
        raise InputError('NumPyro is not installed; try pip install "flowknife[export]"') from None

    class FromPrior(Transform):
        """From R^d to the support of a prior, whose bijection goes the other way."""

        domain = constraints.real_vector

        def __init__(self, bijection, origin, scale):
            self.bijection, self.origin, self.scale = bijection, origin, scale

        @property
        def codomain(self):
            return Support(self.bijection, self.origin, self.scale)

        def __call__(self, x):
            return self.bijection.decode(jnp.asarray(x))[0] * self.scale + self.origin

        def _inverse(self, y):
            return self.bijection.encode((jnp.asarray(y) - self.origin) / self.scale)[0]

        def log_abs_det_jacobian(self, x, y, intermediates=None):
            return jnp.sum(jnp.log(self.scale)) - self.bijection.decode(jnp.asarray(x))[1]

        def tree_flatten(self):
            return (self.bijection, self.origin, self.scale), (("bijection", "origin", "scale"), {})

    class Support(constraints.Constraint):
        """Where a prior has a density."""

        event_dim = 1

        def __init__(self, bijection, origin, scale):
            self.bijection, self.origin, self.scale = bijection, origin, scale

        def __call__(self, x):
            u = self.bijection.encode((jnp.asarray(x) - self.origin) / self.scale)[0]
            return jnp.all(jnp.isfinite(u), axis=-1)

        def feasible_like(self, prototype):
            u = jnp.zeros((*jnp.shape(prototype)[:-1], *self.bijection.shape))
            return self.bijection.decode(u)[0] * self.scale + self.origin

        def tree_flatten(self):
            return (self.bijection, self.origin, self.scale), (("bijection", "origin", "scale"), {})

    @biject_to.register(Support)
    def _(support):
        return FromPrior(support.bijection, support.origin, support.scale)

    class NumPyroFlow(dist.Distribution):
        """A fitted flow: a prior, a likelihood of rows, or a guide."""

        arg_constraints: dict[str, Any] = {}  # noqa: RUF012, as NumPyro declares it
        reparametrized_params: list[str] = []  # noqa: RUF012
        pytree_data_fields = ("model", "origin", "scale", "known", "prior")
        pytree_aux_fields = ("density",)

        def __init__(self, model, origin, scale, known, prior, density, *, validate_args=None):
            self.model, self.origin, self.scale, self.known, self.prior = model, origin, scale, known, prior
            self.density = density
            super().__init__(batch_shape=(), event_shape=(len(origin),), validate_args=validate_args)

        @property
        def support(self):
            if self.prior is None:
                return constraints.real_vector
            return Support(self.prior, self.origin, self.scale)

        has_rsample = True

        def rsample(self, key, sample_shape=()):
            return self.sample(key, sample_shape)

        def sample(self, key, sample_shape=()):
            rows = self.model.sample_left(key, sample_shape, **self.known)["x"]
            return rows * self.scale + self.origin

        def log_prob(self, value, intermediates=None):
            inside = (jnp.asarray(value) - self.origin) / self.scale
            batch = jnp.shape(inside)[:-1]
            known = {name: jnp.broadcast_to(row, (*batch, len(row))) for name, row in self.known.items()}
            return self.density(self.model, inside, **known) - jnp.sum(jnp.log(self.scale))

    return NumPyroFlow, Support
