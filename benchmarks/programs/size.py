"""How much disk an environment with one package takes, in MiB, and how many packages it has."""

import sysconfig
from importlib.metadata import distributions
from pathlib import Path

import common


def main():
    s = common.settings()

    def sample():
        files = [path for path in Path(sysconfig.get_path("purelib")).rglob("*") if path.is_file()]
        compiled = sum(path.stat().st_size for path in files if path.suffix == ".pyc")
        everything = sum(path.lstat().st_size for path in files)
        return {"mebibytes": (everything - compiled) / 2**20, "packages": len(list(distributions()))}

    common.serve({"versions": common.versions(s["package"], "torch", "jax")}, sample)


main()
