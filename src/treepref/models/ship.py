"""Put a trained policy's folder where `builtin:tiny-base` is read from: `python -m treepref.models.ship FROM TO`."""

from __future__ import annotations

import sys

from treepref.models.policy import load_policy, save_policy


def ship(source: str, target: str) -> None:
    """Copy the policy without its value head: a base model has none. Raises ModelError, StoreError."""
    policy = load_policy(source, value_head=False, device="cpu")
    policy.name = "builtin:tiny-base"
    print(f"{save_policy(policy, target)}: {sum(p.numel() for p in policy.model.parameters()):,} parameters")


if __name__ == "__main__":
    ship(*sys.argv[1:])
