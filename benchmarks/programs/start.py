"""How long a shell waits for a package's flows to be imported, for flowknife's bare `import`, and for its `--help`.

Some packages import nothing until something is used, so that a bare `import` compares nothing.
"""

import subprocess
import sys

import common

USED = {
    "flowknife": "from flowknife import INN, fit; from flowknife.architectures import coupling_flow",
    "zuko": "from zuko.flows import NSF",
    "normflows": "from normflows import NormalizingFlow",
    "nflows": "from nflows.flows import Flow; from nflows import distributions, transforms",
    "FrEIA": "import FrEIA.framework, FrEIA.modules",
    "flowjax": "from flowjax.flows import coupling_flow; from flowjax.train import fit_to_data",
    "sbi": "from sbi.inference import NPE",
    "pyod": "from pyod.models.iforest import IForest",
}


def main():
    s = common.settings()

    def seconds(*arguments):
        return common.median_of(
            lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True), s["runs"]
        )

    def sample():
        found = {"used": seconds("-c", USED[s["package"]]), "import": None, "help": None}
        if s["package"] == "flowknife":
            found |= {"import": seconds("-c", "import flowknife"), "help": seconds("-m", "flowknife", "--help")}
        return found

    common.serve({"versions": common.versions(s["package"], "torch", "jax")}, sample)


main()
