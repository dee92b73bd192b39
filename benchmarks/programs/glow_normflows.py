"""A training step of normflows' Glow in channels-last layout, the faster one: the same images, levels and widths."""

import common
import normflows as nf
import torch


def main():
    s = common.settings()
    torch.set_num_threads(common.threads())
    torch.manual_seed(0)
    priors, merges, flows = [], [], []
    for i in range(s["levels"]):
        channels = 3 * 2 ** (s["levels"] + 1 - i)
        flows.append([nf.flows.GlowBlock(channels, s["width"]) for _ in range(s["steps"])] + [nf.flows.Squeeze()])
        merges += [nf.flows.Merge()] if i else []
        size = s["side"] // 2 ** (s["levels"] - i)
        priors.append(nf.distributions.DiagGaussian((channels // 2 if i else channels, size, size)))
    model = nf.MultiscaleFlow(priors, flows, merges).to(memory_format=torch.channels_last)
    x = torch.rand(s["batch"], 3, s["side"], s["side"]).contiguous(memory_format=torch.channels_last)
    adam = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def step():
        adam.zero_grad(set_to_none=True)
        model.forward_kld(x).backward()
        adam.step()

    step()

    def sample():
        return {"ms": 1000 * common.mean_of(step, s["calls"]), "mebibytes": common.peak_mebibytes()}

    about = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "architecture": f"{s['steps']} steps per level, channels-last",
    }
    common.serve({**about, "versions": common.versions("normflows", "torch")}, sample)


main()
