"""sbi's NPE on the same pairs, trained as it is by default: from the start of the process to draws."""

import warnings

import common
import numpy as np
import torch


def main():
    s = common.settings()
    warnings.simplefilter("ignore")
    torch.set_num_threads(common.threads())

    def sample():
        from sbi.inference import NPE
        from sbi.utils import BoxUniform

        torch.manual_seed(s["repeat"])
        with np.load(s["data"]) as arrays:
            theta, y, observed = (
                torch.from_numpy(arrays[name].astype(np.float32)) for name in ("theta", "y", "observed")
            )
        prior = BoxUniform(-torch.ones(theta.shape[1]), torch.ones(theta.shape[1]))
        inference = NPE(prior=prior, density_estimator=s["estimator"], show_progress_bars=False)
        inference.append_simulations(theta, y).train(**({"max_num_epochs": s["epochs"]} if s["epochs"] else {}))
        posterior = inference.build_posterior()
        posterior.sample((s["draws"],), x=observed[0], show_progress_bars=False)
        seconds = common.since_start()
        draws = [posterior.sample((s["compared"],), x=one, show_progress_bars=False).numpy() for one in observed]
        np.save(s["out"], np.stack(draws))
        return {"seconds": None, "draws": seconds}

    common.serve(
        {"versions": common.versions("sbi", "torch"), "architecture": f"NPE, {s['estimator']}, as it is by default"},
        sample,
    )


main()
