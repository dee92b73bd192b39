"""How long a shell waits for `import PACKAGE`, and for flowknife's `--help`."""

import subprocess
import sys

import common


def main():
    s = common.settings()

    def seconds(*arguments):
        return common.median_of(
            lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True), s["runs"]
        )

    def sample():
        found = {"import": seconds("-c", f"import {s['package']}")}
        return found | {"help": seconds("-m", "flowknife", "--help") if s["package"] == "flowknife" else None}

    common.serve({"versions": common.versions(s["package"], "torch", "jax")}, sample)


main()
