"""Flows of FrEIA: affine couplings of one half with an MLP, and a permutation in each."""

import FrEIA.framework as Ff
import FrEIA.modules as Fm
import torch
import torch_jobs


def build(s):
    dim, width = s["dim"], s["width"]

    def net(inputs, outputs):
        return torch.nn.Sequential(
            torch.nn.Linear(inputs, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, outputs),
        )

    flow = Ff.SequenceINN(dim)
    for _ in range(s["layers"]):
        flow.append(Fm.AllInOneBlock, subnet_constructor=net)
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(dim), torch.ones(dim)), 1)

    def log_prob(x):
        z, log_det = flow(x)
        return base.log_prob(z) + log_det

    return torch_jobs.Flow(
        flow, log_prob, lambda n: flow(base.sample((n,)), rev=True)[0], "coupling, permutations, ReLU"
    )


torch_jobs.main(build, "FrEIA")
