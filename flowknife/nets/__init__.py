"""Networks inside couplings, independent of flows.

Every network is called as `net(x, cond)` on batch-first arrays, and is built by
`Net(in_shape, out_shape, cond_shape=None, *, key, ...)`; its attribute `cond_shape` is the shape of its condition, None
for none. Set its sizes with `functools.partial(MLP, width=128)`. The last layer starts at zero, so that a coupling
starts as the identity. Vectors have shape (n,), images (height, width,
channels). An `Embedding` computes features of an observation for such networks; an `ObservationEmbedding` does so for
sets, series, images and observations with gaps.
"""

from flowknife.nets._embedding import Embedding
from flowknife.nets._images import Conv, ConvNet, ConvResNet, Joined, PatchMLP, patches
from flowknife.nets._observations import ObservationEmbedding
from flowknife.nets._transformer import AttentionBlock, ViT
from flowknife.nets._vectors import ACTIVATIONS, MLP, Dense, MaskedMLP, ResidualMLP

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "AttentionBlock",
    "Conv",
    "ConvNet",
    "ConvResNet",
    "Dense",
    "Embedding",
    "Joined",
    "MaskedMLP",
    "ObservationEmbedding",
    "PatchMLP",
    "ResidualMLP",
    "ViT",
    "patches",
]
