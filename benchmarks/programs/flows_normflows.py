"""Flows of normflows: couplings with an MLP, or masked autoregressive ones, and a permutation after each."""

import normflows as nf
import torch
import torch_jobs
from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling


class MLP(torch.nn.Sequential):
    def __init__(self, inputs, outputs, width):
        super().__init__(
            torch.nn.Linear(inputs, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, outputs),
        )

    def forward(self, x, context=None):
        return super().forward(x)


class SplineCoupling(nf.flows.Flow):
    """normflows' spline coupling with an MLP in the place of its residual network."""

    def __init__(self, dim, width):
        super().__init__()
        mask = nf.utils.masks.create_alternating_binary_mask(dim)
        self.map = PiecewiseRationalQuadraticCoupling(
            mask, lambda i, o: MLP(i, o, width), num_bins=8, tails="linear", tail_bound=3.0
        )

    def forward(self, z):
        z, log_det = self.map.inverse(z)
        return z, log_det.view(-1)

    def inverse(self, z):
        z, log_det = self.map(z)
        return z, log_det.view(-1)


def build(s):
    dim, width = s["dim"], s["width"]
    kept = dim - dim // 2  # AffineCoupling moves the second part

    def layer():
        if s["kind"] == "autoregressive":
            return nf.flows.MaskedAffineAutoregressive(dim, width, num_blocks=1, use_residual_blocks=False)
        if s["scalar"] == "spline":
            return SplineCoupling(dim, width)
        return nf.flows.AffineCouplingBlock(nf.nets.MLP([kept, width, width, 2 * (dim - kept)], leaky=0.0))

    layers = [each for _ in range(s["layers"]) for each in (layer(), nf.flows.Permute(dim, mode="shuffle"))]
    base = nf.distributions.DiagGaussian(dim, trainable=False)
    flow = nf.NormalizingFlow(base, layers)
    return torch_jobs.Flow(flow, flow.log_prob, lambda n: flow.sample(n)[0], f"{s['kind']}, permutations, ReLU")


torch_jobs.main(build, "normflows")
