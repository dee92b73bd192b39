"""The jobs of a flow in PyTorch. A peer gives its flow as a `Flow`, and `main(build)` does the job of the row."""

from collections.abc import Callable
from typing import NamedTuple

import common
import numpy as np
import torch


class Flow(NamedTuple):
    module: torch.nn.Module
    log_prob: Callable
    sample: Callable
    architecture: str


def main(build: Callable[[dict], Flow], package: str) -> None:
    """Build the flow of the settings and do their job."""
    s = common.settings()
    torch.set_num_threads(common.threads())
    torch.manual_seed(0)
    flow = build(s)
    about = {
        "parameters": sum(p.numel() for p in flow.module.parameters() if p.requires_grad),
        "architecture": flow.architecture,
        "versions": common.versions(package, "torch"),
    }
    if s.get("compile"):
        flow = flow._replace(log_prob=torch.compile(flow.log_prob))
    common.serve(
        about, {"train": _train, "first": _first, "density": _density, "evaluate": _evaluate}[s["job"]](s, flow)
    )


def _step_of(flow, x, batch, rate=1e-3):
    """One training step: negative log-likelihood, backward, Adam in one kernel."""
    adam = torch.optim.Adam([p for p in flow.module.parameters() if p.requires_grad], rate, fused=True)
    order = torch.randperm(len(x))
    place = [0]

    def step(rate=None):
        if rate is not None:
            adam.param_groups[0]["lr"] = rate
        if place[0] + batch > len(x):
            order[:] = torch.randperm(len(x))
            place[0] = 0
        rows = x[order[place[0] : place[0] + batch]]
        place[0] += batch
        adam.zero_grad(set_to_none=True)
        loss = -flow.log_prob(rows).mean()
        loss.backward()
        adam.step()

    return step


def _train(s, flow):
    step = _step_of(flow, torch.from_numpy(common.normal_rows(s["dim"], 32 * s["batch"])), s["batch"])
    count = common.steps_within(step, s["seconds"])

    def sample():
        return {"ms": 1000 * common.mean_of(step, count)}

    return sample


def _first(s, flow):
    step = _step_of(flow, torch.from_numpy(common.normal_rows(s["dim"], 32 * s["batch"])), s["batch"])

    def sample():
        step()
        return {"seconds": common.since_start()}

    return sample


def _density(s, flow):
    """Train for a time from process start; nats above the entropy at marks, of which the time is not counted."""
    with np.load(s["data"]) as arrays:
        train, test, entropy = (
            torch.from_numpy(arrays["train"]),
            torch.from_numpy(arrays["test"]),
            float(arrays["entropy"]),
        )
    center, scale = train.mean(0), train.std(0)
    train, test, lost = (train - center) / scale, (test - center) / scale, float(scale.log().sum())

    def nats():
        with torch.inference_mode():
            parts = [flow.log_prob(part).double().sum() for part in test.split(common.ROWS_AT_ONCE)]
        return -float(sum(parts)) / len(test) + lost - entropy

    def sample():
        return common.trained(s, _step_of(flow, train, s["batch"]), nats)

    return sample


@torch.inference_mode()
def _score(flow, x):
    return torch.cat([flow.log_prob(part) for part in x.split(common.ROWS_AT_ONCE)])


@torch.inference_mode()
def _draw(flow, n):
    return torch.cat([flow.sample(min(common.ROWS_AT_ONCE, n - i)) for i in range(0, n, common.ROWS_AT_ONCE)])


def _evaluate(s, flow):
    flow.module.eval()
    x = torch.from_numpy(common.normal_rows(s["dim"], max(s["rows"])))
    calls = {"log_prob": lambda n: _score(flow, x[:n]), "sample": lambda n: _draw(flow, n)}
    call = calls[s["what"]]
    call(1)

    def sample():
        return {str(n): 1000 * common.median_of(lambda n=n: call(n), 1 if n > 100_000 else 7) for n in s["rows"]}

    return sample
