"""The command line: the top layer. It may import every package, and none of them imports it."""

from tiering.cli.app import app


def main() -> None:
    """Run `kvtide`."""
    app()
