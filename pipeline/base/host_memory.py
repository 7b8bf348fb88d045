"""Resident memory of this process and its highest value, as Linux counts them."""

from __future__ import annotations

from pathlib import Path

STATUS = Path("/proc/self/status")


class NotCounted(RuntimeError):
    """This system does not say how much memory a process has."""


def resident_and_reset() -> int:
    """This process's resident memory in bytes; the count of the peak begins anew.

    Raises:
        NotCounted: this is no Linux, or it does not let processes reset their peak.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        raise NotCounted(f"/proc/self/clear_refs cannot be written ({error})") from error
    return status_bytes("VmRSS:")


def peak_resident() -> int:
    """The highest resident memory since the count began, in bytes.

    Raises:
        NotCounted: this is no Linux.
    """
    return status_bytes("VmHWM:")


def status_bytes(name: str) -> int:
    """Bytes of a line of /proc/self/status, as ``VmRSS:``.

    Raises:
        NotCounted: there is no such file or line.
    """
    try:
        lines = STATUS.read_text().splitlines()
    except OSError as error:
        raise NotCounted(f"{STATUS} cannot be read ({error})") from error
    for line in lines:
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise NotCounted(f"{STATUS} has no {name}")
