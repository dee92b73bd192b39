"""Fit a density to rows, draw new rows, and keep the model."""

import sys

import flowknife as fk

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/moons"

moons = fk.data.TOYS["moons"]
flow = fk.density(moons.sample(2000, key=0), layers=4, train={"steps": 300}, key=0)

new = moons.sample(2000, key=1)
print(f"entropy, which no model can beat: {moons.entropy:.2f} nats per row")
print(f"negative log-likelihood of new rows: {-flow.log_prob(new).mean():.2f} nats per row")

flow.save(folder)
print(fk.load(folder).sample(3, key=2))
