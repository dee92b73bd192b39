"""Flows of nflows: couplings with an MLP, or masked autoregressive ones, and a permutation before each."""

import itertools

import torch
import torch_jobs
from nflows.distributions.normal import StandardNormal
from nflows.flows import Flow
from nflows.transforms import (
    AffineCouplingTransform,
    CompositeTransform,
    MaskedAffineAutoregressiveTransform,
    PiecewiseRationalQuadraticCouplingTransform,
    RandomPermutation,
    ReversePermutation,
)
from nflows.utils.torchutils import create_alternating_binary_mask


class MLP(torch.nn.Sequential):
    def __init__(self, inputs, outputs, width):
        sizes = [inputs, width, width]
        layers = [m for a, b in itertools.pairwise(sizes) for m in (torch.nn.Linear(a, b), torch.nn.ReLU())]
        super().__init__(*layers, torch.nn.Linear(width, outputs))

    def forward(self, x, context=None):
        return super().forward(x)


def build(s):
    dim = s["dim"]

    def net(inputs, outputs):
        return MLP(inputs, outputs, s["width"])

    def layer(i):
        if s["kind"] == "autoregressive":
            # one block of one layer between two: two hidden layers
            made = MaskedAffineAutoregressiveTransform(dim, s["width"], num_blocks=1, use_residual_blocks=False)
            return [ReversePermutation(dim), made]
        mask = create_alternating_binary_mask(dim, even=i % 2 == 0)
        if s["scalar"] == "spline":
            return [PiecewiseRationalQuadraticCouplingTransform(mask, net, num_bins=8, tails="linear", tail_bound=3.0)]
        return [AffineCouplingTransform(mask, net)]

    mixed = [[RandomPermutation(dim), *layer(i)] if s["kind"] == "coupling" else layer(i) for i in range(s["layers"])]
    flow = Flow(CompositeTransform([t for ts in mixed for t in ts]), StandardNormal([dim]))
    return torch_jobs.Flow(flow, flow.log_prob, flow.sample, f"{s['kind']}, permutations, ReLU")


torch_jobs.main(build, "nflows")
