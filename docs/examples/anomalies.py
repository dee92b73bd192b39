"""Find anomalous rows: a calibrated p-value for each row, without any labels."""

import numpy as np

import flowknife as fk

moons = fk.data.TOYS["moons"]
flow = fk.density(moons.sample(2000, key=0), layers=4, train={"steps": 300}, key=0)

normal = moons.sample(500, key=1)
anomalous = np.random.default_rng(0).uniform(-4, 4, (500, 2))
for name, rows in (("normal", normal), ("anomalous", anomalous)):
    scores = flow.score(rows)
    print(f"{name}: {scores['flag'].mean():.0%} flagged at p < {flow.config.alpha}")
