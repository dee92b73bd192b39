"""Invertible maps with exact log-determinants; `_base.py` states their contract."""

from flowknife.bijections._autoregressive import MaskedAutoregressive
from flowknife.bijections._base import Bijection
from flowknife.bijections._chain import Chain, Inverse, Repeat, Reshape
from flowknife.bijections._coupling import Channels, Checkerboard, Coupling
from flowknife.bijections._elementwise import (
    ActNorm,
    Affine,
    Composed,
    Elementwise,
    Exp,
    Logit,
    Scalar,
    Shift,
    ShiftScale,
    Sigmoid,
    Softplus,
    Tanh,
)
from flowknife.bijections._image import Haar, InvertibleConv1x1, Split, Squeeze
from flowknife.bijections._linear import LU, Householder, Matrix, Orthogonal, Permute, PrincipalRotation
from flowknife.bijections._spline import Spline

__all__ = [
    "LU",
    "ActNorm",
    "Affine",
    "Bijection",
    "Chain",
    "Channels",
    "Checkerboard",
    "Composed",
    "Coupling",
    "Elementwise",
    "Exp",
    "Haar",
    "Householder",
    "Inverse",
    "InvertibleConv1x1",
    "Logit",
    "MaskedAutoregressive",
    "Matrix",
    "Orthogonal",
    "Permute",
    "PrincipalRotation",
    "Repeat",
    "Reshape",
    "Scalar",
    "Shift",
    "ShiftScale",
    "Sigmoid",
    "Softplus",
    "Spline",
    "Split",
    "Squeeze",
    "Tanh",
]
