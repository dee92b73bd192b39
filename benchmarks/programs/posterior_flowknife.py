"""`fk.invert` on two_moons with its defaults: from the start of the process to draws and `check()`."""

import common
import numpy as np

import flowknife as fk


def main():
    s = common.settings()

    def sample():
        problem = fk.problems.two_moons()
        with np.load(s["data"]) as arrays:
            theta, y, observed = arrays["theta"], arrays["y"], arrays["observed"]
        posterior = fk.invert(pairs=(theta, y), prior=problem.prior, key=s["repeat"], show_progress=False)
        posterior.sample(s["draws"], y=observed[0], key=0)
        trained = common.since_start()
        posterior.check()
        seconds = common.since_start()
        drawn = np.stack([posterior.sample(s["compared"], y=one, key=1) for one in observed])
        np.save(s["out"], drawn)
        return {"seconds": seconds, "draws": trained}

    common.serve({"versions": common.versions("flowknife", "jax"), "architecture": "as it is by default"}, sample)


main()
