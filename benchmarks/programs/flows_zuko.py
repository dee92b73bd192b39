"""Flows of zuko: couplings with alternating masks, or masked autoregressive ones."""

import torch
import torch_jobs
import zuko


def build(s):
    dim, hidden = s["dim"], [s["width"]] * 2
    spline = s["scalar"] == "spline"
    univariate = zuko.transforms.MonotonicRQSTransform if spline else zuko.transforms.MonotonicAffineTransform
    shapes = [(8,), (8,), (7,)] if spline else [(), ()]
    if s["kind"] == "autoregressive":
        transforms = [
            zuko.flows.MaskedAutoregressiveTransform(
                dim,
                order=torch.arange(dim) if i % 2 else torch.arange(dim).flip(0),
                univariate=univariate,
                shapes=shapes,
                hidden_features=hidden,
                activation=torch.nn.ReLU,
            )
            for i in range(s["layers"])
        ]
    else:
        transforms = [
            zuko.flows.GeneralCouplingTransform(
                dim,
                mask=(torch.arange(dim) + i) % 2 == 0,
                univariate=univariate,
                shapes=shapes,
                hidden_features=hidden,
                activation=torch.nn.ReLU,
            )
            for i in range(s["layers"])
        ]
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(dim), torch.ones(dim), buffer=True
    )
    flow = zuko.lazy.Flow(zuko.lazy.LazyComposedTransform(*transforms), base)
    return torch_jobs.Flow(
        flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,)), f"{s['kind']}, alternating order, ReLU"
    )


torch_jobs.main(build, "zuko")
