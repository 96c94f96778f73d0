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


@pki.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--to", "receivers", multiple=True, help="Only this device gets the policy (may be repeated)."
)
def policy(source: Path, directory: Path, receivers: tuple[str, ...]) -> None:
    """Sign the domain policy in SOURCE, a TOML file, and give it to the devices in DIRECTORY.

    The policy's authority is made the first time. A device keeps to the policy if its file says

    \b
      [policy]
      file = ".../policy.signed"
      authority = ".../policy-authority.pem"

    \b
    Example of SOURCE:
      domain = "exercise"
      version = 1
      suites = ["aes-gcm-128", "aes-gcm-256"]
      sa_modes = ["per-sender"]
      unicast = ["group"]
      key_bits_min = 128
      sa_lifetime_min_s = 600
      sa_lifetime_max_s = 86400
      sa_lifetime_min_bytes = 1000000000
      sa_lifetime_max_bytes = 1000000000000
      hello_interval_min_ms = 500
      hello_interval_max_ms = 5000

    \b
    Example:
      testbed pki policy policy.toml /tmp/coalition
    """
    import tomllib

    from protocol.core.errors import LocalError
    from protocol.identity.policypki import distribute
    from protocol.idp.policy import DomainPolicy

    try:
        made = DomainPolicy.from_table(tomllib.loads(source.read_text(encoding="utf-8")))
    except (LocalError, ValueError) as error:
        raise click.ClickException(f"{source}: {error}") from None
    try:
        for path in distribute(directory, made.encode(), list(receivers) or None):
            click.echo(path)
    except LocalError as error:
        raise click.ClickException(str(error)) from None
