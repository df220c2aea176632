"""What the system says about this machine's processor."""

from __future__ import annotations

from pathlib import Path


def processor_flags() -> frozenset[str] | None:
    """Return the instruction sets of this machine's processor; None where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    names = ("flags", "Features")  # of x86, of ARM
    lines = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return frozenset(next((values.split() for name, values in lines if name.strip() in names), ()))
