"""Architectures for vectors (`coupling_flow`, `realnvp`) and images (`wavelet`, `glow`, `jet`, `realnvp`).

All are finite at initialisation for any depth: couplings start as the identity, scales are bounded, linear layers start
as rotations.
"""

from flowknife.architectures._dequantiser import dequantiser
from flowknife.architectures._glow import glow
from flowknife.architectures._jet import jet
from flowknife.architectures._levels import levels_for
from flowknife.architectures._realnvp import realnvp
from flowknife.architectures._vectors import MIXINGS, SCALARS, coupling_flow, flow_given
from flowknife.architectures._wavelet import lattice, wavelet

__all__ = [
    "MIXINGS",
    "SCALARS",
    "coupling_flow",
    "dequantiser",
    "flow_given",
    "glow",
    "jet",
    "lattice",
    "levels_for",
    "realnvp",
    "wavelet",
]
