"""``valetkey audit``: read and verify the record."""

import click


@click.group()
def audit() -> None:
    """Read and verify the record."""
