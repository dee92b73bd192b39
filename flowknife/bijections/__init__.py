"""Invertible maps with exact log-determinants; `_base.py` states their contract."""

from flowknife.bijections._autoregressive import MaskedAutoregressive
from flowknife.bijections._base import Bijection
from flowknife.bijections._chain import Chain, Conditioned, Inverse, Repeat, Reshape
from flowknife.bijections._coupling import Channels, Checkerboard, Coupling
from flowknife.bijections._elementwise import (
    ActNorm,
    Affine,
    Composed,
    Elementwise,
    Exp,
    Log,
    Logit,
    Scalar,
    Shift,
    ShiftScale,
    Sigmoid,
    SigmoidScale,
    Softplus,
    Tanh,
)
from flowknife.bijections._image import CoarseToFine, Haar, InvertibleConv1x1, Split, Squeeze
from flowknife.bijections._linear import LU, Householder, Matrix, Orthogonal, Permute, PrincipalRotation, Regression
from flowknife.bijections._principal import LeadingRotation
from flowknife.bijections._probit import Concatenate, HistogramToNormal, PixelsToNormal, TruncatedToNormal
from flowknife.bijections._spline import Spline

__all__ = [
    "LU",
    "ActNorm",
    "Affine",
    "Bijection",
    "Chain",
    "Channels",
    "Checkerboard",
    "CoarseToFine",
    "Composed",
    "Concatenate",
    "Conditioned",
    "Coupling",
    "Elementwise",
    "Exp",
    "Haar",
    "HistogramToNormal",
    "Householder",
    "Inverse",
    "InvertibleConv1x1",
    "LeadingRotation",
    "Log",
    "Logit",
    "MaskedAutoregressive",
    "Matrix",
    "Orthogonal",
    "Permute",
    "PixelsToNormal",
    "PrincipalRotation",
    "Regression",
    "Repeat",
    "Reshape",
    "Scalar",
    "Shift",
    "ShiftScale",
    "Sigmoid",
    "SigmoidScale",
    "Softplus",
    "Spline",
    "Split",
    "Squeeze",
    "Tanh",
    "TruncatedToNormal",
]
