"""Prints pip's constraints for the lowest version of everything that pyproject.toml declares but torch.

A bound `>=2.0` becomes `==2.0`, so what `make lowest` tests are the bounds as they are written. torch is left
to the Makefile's TORCH.
"""

from __future__ import annotations

from licence_list import declared


def lowest_versions() -> list[str]:
    """`name==version` of each declared lower bound, sorted."""
    return sorted(
        f"{requirement.name}=={bound.version}"
        for requirements in declared().values()
        for requirement in requirements
        for bound in requirement.specifier
        if bound.operator == ">=" and requirement.name != "torch"
    )


if __name__ == "__main__":
    print("\n".join(lowest_versions()))
