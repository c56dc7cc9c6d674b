"""The house rule 'imports point down' as a test: parses every import of the package, rl/ and tools/."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each layer may import the layers before it, and itself. Modules of one layer that are listed as separate
# entries are siblings: they may not import each other.
LAYERS: list[tuple[str, ...]] = [
    ("constants", "errors", "commands"),
    ("geometry", "worker_processes"),
    ("data",),
    ("actions", "answer", "provenance"),
    ("tokenizer", "diffusion", "model", "scoring", "synthetic"),
    ("prompt", "autoregressive", "pose_diffusion"),
    ("planner", "learned_scorer"),
    ("navsim_api",),
    ("navsim_inputs",),
    ("features", "selection", "loaded_planners", "training"),
    ("navsim_training",),
    ("baselines", "agent"),
    ("evaluation",),
    ("doctor", "reproduction"),
]
# Siblings that may nevertheless use each other, with the reason.
SIBLING_EXCEPTIONS = {
    ("agent", "baselines"),  # the agent's declared fallback is the constant-velocity baseline
}
ABOVE_DATA = {
    "answer",
    "diffusion",
    "model",
    "prompt",
    "autoregressive",
    "pose_diffusion",
    "planner",
    "learned_scorer",
}
AGENTS = {
    "navsim_api",
    "navsim_inputs",
    "features",
    "selection",
    "loaded_planners",
    "training",
    "navsim_training",
    "baselines",
    "agent",
    "evaluation",
    "doctor",
}
FOREIGN = {
    "torch": ABOVE_DATA | AGENTS,
    "transformers": {"model"},
    "navsim": {"navsim_api"},
    "nuplan": {"navsim_api"},
    "pytorch_lightning": {"navsim_training"},
    "hydra": {"doctor", "navsim_training"},  # what Hydra finds; what NAVSIM's command line chose
    "deepspeed": set(),
    "numba": {"scoring", "synthetic"},
}


def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports, so that this test can read them"
            base = node.module or ""
            if base == "drivefine_agent":
                names += [f"{base}.{alias.name}" for alias in node.names]
            else:
                names.append(base)
    return names


def _part(path: Path) -> str:
    relative = path.relative_to(ROOT / "drivefine_agent")
    return relative.parts[0].removesuffix(".py")


def _level(part: str) -> int:
    for level, parts in enumerate(LAYERS):
        if part in parts:
            return level
    raise AssertionError(f"drivefine_agent/{part} is in no layer: add it to LAYERS in {__file__}")


PACKAGE = ROOT / "drivefine_agent"
PACKAGE_FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    part = _part(path)
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] in FOREIGN:
            assert part in FOREIGN[parts[0]], (
                f"{path}: {parts[0]} may be imported in {FOREIGN[parts[0]] or 'entry points'} only"
            )
        assert parts[0] not in {"rl", "tools", "tests"}, (
            f"{path}: the package does not know its scripts ({name})"
        )
        if parts[0] != "drivefine_agent" or len(parts) == 1:
            continue
        other = parts[1]
        if other == part or (part, other) in SIBLING_EXCEPTIONS:
            continue
        assert _level(other) < _level(part), f"{path}: {part} may not import {other}: imports point down"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "drivefine_agent").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_unsafe_loading(path: Path) -> None:
    """No pickle, torch.load or eval outside the restricted reader; no blanket exception handlers."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno}: bare except"
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            if call in {"pickle.load", "pickle.loads", "eval", "exec"}:
                raise AssertionError(f"{path}:{node.lineno}: {call} runs code from a file")
            for keyword in node.keywords:
                if keyword.arg == "strict" and isinstance(keyword.value, ast.Constant):
                    assert keyword.value.value is not False or call != "load_state_dict", (
                        f"{path}:{node.lineno}: strict=False"
                    )
                if keyword.arg == "allow_pickle" and isinstance(keyword.value, ast.Constant):
                    assert keyword.value.value is False, f"{path}:{node.lineno}: allow_pickle=True"
            if call == "torch.load":
                assert any(k.arg == "weights_only" for k in node.keywords), (
                    f"{path}:{node.lineno}: torch.load without weights_only"
                )
