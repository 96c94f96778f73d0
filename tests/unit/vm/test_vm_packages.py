"""The guest's file list from the packages installed on the host."""

from pathlib import Path

import pytest

from testbed.vm import packages
from testbed.vm.layout import GUEST_PACKAGES, TestbedEnvironmentError

STATUS = (
    "base\t1\tinstalled\tyes\t, libc (>= 2.3)\t\n"
    "libc\t2.36\tinstalled\tno\t, \t\n"
    "tool\t3\tinstalled\tno\tpre:any, awk | mawk, ghost\t\n"
    "pre\t1\tinstalled\tno\t, \t\n"
    "gawk\t5\tinstalled\tno\t, \tawk (= 5)\n"
    "gone\t5\tconfig-files\tno\t, \t\n"
    "unused\t5\tinstalled\tno\t, \t\n"
)


def test_closure_follows_dependencies_alternatives_and_virtual_packages() -> None:
    installed = packages.parse_status(STATUS)
    found = packages.closure(["tool"], installed)
    assert [package.name for package in found] == ["base", "gawk", "libc", "pre", "tool"]


def test_packages_that_are_not_installed_are_unknown() -> None:
    assert "gone" not in packages.parse_status(STATUS)


def test_a_missing_package_is_named_with_the_cure() -> None:
    with pytest.raises(TestbedEnvironmentError, match=r"missing for .*: gone; run 'make setup'"):
        packages.closure(["gone", "tool"], packages.parse_status(STATUS))


def test_package_lists_have_comments(tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text("# heading\n\nalpha\nbeta # why\n")
    assert packages.read_package_list(listed) == ["alpha", "beta"]


def test_the_guest_wants_nothing_that_the_set_up_does_not_install() -> None:
    host = set(packages.read_package_list(GUEST_PACKAGES.with_name("packages-host.txt")))
    guest = set(packages.read_package_list(GUEST_PACKAGES))
    always_there = {"mount"}  # Debian's priority `required`
    assert guest <= host | always_there
