"""What is exported of a model: functions of it with the shapes of their arguments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowknife._frame import Frame
from flowknife._types import Shape


class Input(NamedTuple):
    """An argument of a program.

    Attributes:
        name: what it is called.
        shape: of one item.
        dtype: of its numbers.
        batch: the name of its batch axis; "" for none.
    """

    name: str
    shape: Shape
    dtype: str = "float32"
    batch: str = "n"


class Program(NamedTuple):
    """A function of a model and of arrays.

    Attributes:
        function: `function(model, *arrays)`, an array.
        inputs: its arrays.
        most: items in a batch, at most; None for as many as there are.
    """

    function: Callable[..., Any]
    inputs: tuple[Input, ...]
    most: int | None = None


KEY = Input("key", (2,), "uint32", "")
"""The words of a JAX key."""

TEMPERATURE = Input("temperature", (), "float32", "")

ROWS = Input("rows", (), "int8")
"""An array whose length says how many are drawn."""


def frame_of(frame: Frame) -> dict[str, Any]:
    """Origin and scale of columns, as plain values."""
    return {"origin": frame.origin, "scale": frame.scale, "constant": frame.constant}


def key_of(words: jax.Array) -> jax.Array:
    """The JAX key of its words."""
    return jax.random.wrap_key_data(jnp.asarray(words))
