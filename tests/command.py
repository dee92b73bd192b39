"""How tests run `flowknife`: with its arguments, as in a shell, and with the exit status that they expect."""

import csv
import re
from pathlib import Path

from typer.testing import CliRunner

from flowknife.cli import app


def call(*arguments, status=0):
    """Run `flowknife` with these arguments and check its exit status; None allows any."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="flowknife")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert status in (None, result.exit_code), (result.stdout, result.stderr)
    return result


def refused(*arguments, words=()):
    """The one line of an error that a user can cause."""
    result = call(*arguments, status=1)
    lines = [line for line in result.stderr.splitlines() if not re.match(r".*: \d+ %", line)]  # progress apart
    assert result.stdout == "" and len(lines) == 1 and lines[0].startswith("error: "), result.output
    for word in (words,) if isinstance(words, str) else words:
        assert word in lines[0]
    return lines[0]


def rows_of(path):
    with Path(path).open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
