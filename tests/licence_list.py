"""Runtime dependencies and their licences: `python tests/licence_list.py` writes docs/licences.md's table.

Names come from pyproject.toml and, from there on, from the metadata of what is installed. Rows of packages
that are not installed here (other versions need others, and few have all extras) are kept as they are.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LIST = ROOT / "docs" / "licences.md"
PURPOSES = {
    "deepspeed": "reinforcement learning with ZeRO; extra `deepspeed`",
    "hydra-core": "configuration of the commands",
    "matplotlib": "figures; extra `viz`",
    "numba": "kernels of the scorer",
    "numpy": "arrays",
    "omegaconf": "configuration, with Hydra",
    "opencv-python-headless": "images: reading, writing, resizing",
    "packaging": "comparing versions",
    "pandas": "tables of results",
    "pillow": "images that NAVSIM reads so",
    "pyarrow": "predictions in Parquet",
    "pyproj": "coordinates of maps",
    "pyyaml": "reading YAML",
    "ray": "rewards from a cluster; extra `ray`",
    "safetensors": "weights",
    "shapely": "geometry of maps",
    "tensorboard": "curves of training; extra `train`",
    "tokenizers": "text tokenizer",
    "torch": "the model",
    "torchao": "quantized weights; extra `quantization`",
    "tqdm": "progress bars",
    "transformers": "SigLIP, and configurations and files of models",
}
"""What each direct dependency is for."""
PERMISSIVE = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CNRI-Python",
    "HPND",
    "ISC",
    "MIT",
    "MIT-CMU",
    "MPL-2.0",  # copyleft of single files, which we neither change nor ship
    "PSF-2.0",
    "Python-2.0",
    "Unlicense",
    "Zlib",
}
"""SPDX names of licences that an Apache-2.0 program may depend on."""
_SPDX = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache software license 2.0": "Apache-2.0",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd license": "BSD",
    "historical permission notice and disclaimer (hpnd)": "HPND",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}
"""What metadata call licences by other names."""
_READ = {
    "packaging": "Apache-2.0 OR BSD-2-Clause",
    "torchao": "BSD-3-Clause",
}
"""Licences read from licence files, where metadata name none, or several and not how they join."""
_ROW = re.compile(r"^\| `(?P<name>[^`]+)` \| (?P<licence>[^|]+) \| (?P<purpose>[^|]*) \|$", re.MULTILINE)
_HEAD = "| package | licence | for |\n|---|---|---|\n"


def declared() -> dict[str, list[Requirement]]:
    """Requirements by extra as pyproject.toml has them; the extra `""` is what is always needed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in groups.items()}


def direct() -> dict[str, Requirement]:
    """Direct runtime dependencies by canonical name, those of every extra but `dev` included."""
    return {
        canonicalize_name(requirement.name): requirement
        for extra, requirements in declared().items()
        if extra != "dev"
        for requirement in requirements
    }


def installed(name: str) -> Distribution | None:
    """The distribution of a name, None where it is not installed."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def runtime_distributions(requirements: Iterable[Requirement]) -> dict[str, Distribution]:
    """What is installed of these requirements and of all that those need in turn, by canonical name."""
    found: dict[str, Distribution] = {}
    asked: set[tuple[str, str]] = set()
    todo = [(requirement, "") for requirement in requirements]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        package = installed(requirement.name)
        if package is None:
            continue
        name = canonicalize_name(requirement.name)
        found[name] = package
        for wanted in ("", *sorted(requirement.extras)):
            if (name, wanted) not in asked:
                asked.add((name, wanted))
                todo += [(Requirement(line), wanted) for line in package.requires or ()]
    return found


def stated_licence(package: Distribution) -> str:
    """The licence that a distribution's metadata, or else its licence file, state, in SPDX's names.

    Raises:
      ValueError: it states none, or one by a name that is not known here.
    """
    metadata = package.metadata
    fields = [str(metadata[name]) for name in ("License-Expression", "License") if metadata[name]]
    for line in fields:
        if _is_spdx(line) or line.lower() in _SPDX:
            return _SPDX.get(line.lower(), line)
    prefix = "License :: OSI Approved :: "
    classifiers = [str(line) for line in metadata.get_all("Classifier") or ()]
    names = [line.removeprefix(prefix) for line in classifiers if line.startswith(prefix)]
    name = canonicalize_name(package.name)
    if name in _READ:
        return _READ[name]
    if len(names) != 1 or names[0].lower() not in _SPDX:
        raise ValueError(
            f"a licence must have a name known here, got {[line[:60] for line in fields] or names} "
            f"from the metadata of {package.name} {package.version}: read its licence file, and add it to "
            "tests/licence_list.py"
        )
    return _SPDX[names[0].lower()]


def _terms(expression: str) -> Iterator[list[str]]:
    """The alternatives of an SPDX expression without brackets, each a list of licences that hold together."""
    for alternative in expression.split(" OR "):
        yield [term.strip() for term in alternative.split(" AND ")]


def _is_spdx(expression: str) -> bool:
    return all(
        re.fullmatch(r"[\w.+-]+( WITH [\w.-]+)?", term) for terms in _terms(expression) for term in terms
    )


def is_compatible(expression: str) -> bool:
    """Whether an Apache-2.0 program may depend on it: one alternative is permissive throughout."""
    return any(PERMISSIVE.issuperset(terms) for terms in _terms(expression))


def listed() -> dict[str, str]:
    """Licences by package as docs/licences.md has them."""
    return {row["name"]: row["licence"] for row in _ROW.finditer(LIST.read_text())}


def write() -> None:
    """Bring the table of docs/licences.md up to date with what is installed."""
    text = LIST.read_text()
    here = runtime_distributions(direct().values())
    licences = listed() | {name: stated_licence(package) for name, package in here.items()}
    rows = [f"| `{name}` | {licences[name]} | {PURPOSES.get(name, '')} |\n" for name in sorted(licences)]
    start = text.index(_HEAD) + len(_HEAD)
    end = start + len("".join(f"{row[0]}\n" for row in _ROW.finditer(text[start:])))
    LIST.write_text(text[:start] + "".join(rows) + text[end:])


if __name__ == "__main__":
    write()
