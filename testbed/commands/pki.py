"""``testbed pki``."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def pki() -> None:
    """Make and revoke the certificates of a coalition: one authority per nation."""


@pki.command()
@click.argument("topology")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--days", type=click.IntRange(min=1), default=365, show_default=True, help="Validity."
)
def make(topology: str, directory: Path, days: int) -> None:
    """Make authorities, keys and certificates for the devices of TOPOLOGY in DIRECTORY.

    \b
    Examples:
      testbed pki make measurement /tmp/coalition
      testbed pki make 'star(3)' ./pki --days 30
    """
    from protocol.identity.pki import make_coalition
    from testbed.device import device_specs
    from topologies import find

    coalition = make_coalition(directory, device_specs(find(topology)), valid_days=days)
    for name in coalition.devices():
        click.echo(coalition.files(name).directory)


@pki.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("devices", nargs=-1, required=True)
def revoke(directory: Path, devices: tuple[str, ...]) -> None:
    """Revoke the certificates of DEVICES; every device gets the new revocation lists.

    \b
    Example:
      testbed pki revoke /tmp/coalition d3
    """
    from protocol.identity.pki import Coalition

    Coalition(directory).revoke(list(devices))
    click.echo(f"revoked: {', '.join(devices)}")
