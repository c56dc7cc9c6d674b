"""Random numbers as a function of (seed, purpose, step): a resumed run draws what an unbroken one would."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, purpose: str, index: int) -> int:
    """A 63-bit seed that depends on all three arguments."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(seed: int, purpose: str, index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for one purpose and index."""
    return torch.Generator(device).manual_seed(derived_seed(seed, purpose, index))


def seed_global(seed: int, purpose: str, index: int) -> None:
    """Seeds torch's global generator, for code that draws without being given one, such as dropout."""
    torch.manual_seed(derived_seed(seed, purpose, index))
