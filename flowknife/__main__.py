"""`flowknife` and `python -m flowknife`."""


def main() -> None:
    """Run the command line."""
    from flowknife.cli import app

    app(prog_name="flowknife")


if __name__ == "__main__":
    main()
