"""Every error of the code base says four things: the rule, what was received, where, and what to do.

The walk is over the syntax tree of each file: every call that builds an exception (raised there, or
handed to `raise` by a helper function), every `sys.exit`, `warnings.warn` and `parser.error`. Constants,
local variables and helper functions that a message is put together from are read too. What it asks of a
message:

- *rule*: a statement of words;
- *received*: a value put into the text, or a wording that says what there was ("got none", "is missing");
- *where*: a place put into the text (path, token, key, ...), or the name of a setting, argument or field;
- *what to do*: an imperative at the start of a clause ("; fetch it again"). For an argument or a setting the
  rule itself is that ("batch_size must be at least 1"). Not for the contents of files: whoever reads the
  message did not choose them.

An error that hands on the text of one of our own (`f"{error}: {path}"`) has the parts that the other has.
"""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("drivefine_agent", "rl", "tools", "hydra_plugins")

# Files whose messages nobody sees as they are: the function named adds where and what to do.
WRAPPED = {
    "drivefine_agent/data/metric_cache.py": "read_metric_cache",
    "drivefine_agent/data/metric_cache_pickle.py": "read_metric_cache",
    "drivefine_agent/data/nuplan_records.py": "_of_nuplan",
    "drivefine_agent/data/parquet.py": "read_parquet",
    "drivefine_agent/data/parquet_footer.py": "read_parquet",
    "drivefine_agent/data/pickle_scan.py": "load_pickle_bytes",
    "drivefine_agent/data/safe_pickle.py": "load_pickle_bytes",
    "drivefine_agent/data/wkb.py": "check_wkb",
    "drivefine_agent/data/driving_text.py": "read_demonstration",
    "drivefine_agent/scoring/build_v2.py": "build_scoring_scene_v2",
    "drivefine_agent/scoring/cache_codec.py": "reading",
    "drivefine_agent/scoring/centerline.py": "build_scoring_scene",
    "drivefine_agent/scoring/convert_cache.py": "scoring_scene_from_metric_cache",
    "drivefine_agent/scoring/cache_layout.py": "reading",
    "drivefine_agent/scoring/cache_roads.py": "reading",
}

# Errors without all parts, each with its reason; the key is the file and the beginning of the message.
EXEMPT: dict[tuple[str, str], str] = {
    ("drivefine_agent/data/json_text.py", "the key "): "the readers of this file add where and what to do",
    ("drivefine_agent/scoring/scorer_v2.py", "{error}"): "the text of a TrafficError that was kept",
    ("drivefine_agent/evaluation/results_csv.py", "rows must have"): "read_columns names the file",
    (
        "drivefine_agent/evaluation/results_csv.py",
        "{error}; write it again",
    ): "a ValueError of this file, which names the CSV",
    **{
        ("drivefine_agent/evaluation/outcomes.py", start): "OutcomeLog adds line, file and what to do"
        for start in (
            "the poses of {name}",
            "the scores of {name}",
            "the error or the details",
            "the details of {name}",
            "its token is no text",
        )
    },
    **{
        ("drivefine_agent/reproduction/scores.py", start): "read_scores adds file and what to do"
        for start in ("it needs the columns", "the columns {list(_KEYS)}", "the column {column.name}")
    },
    **{
        ("drivefine_agent/scoring/cache_pack.py", f"{start} of the index"): "Pack._checked names the file"
        for start in ("columns", "tokens", "scenes")
    },
    (
        "drivefine_agent/worker_processes.py",
        "a worker process must return",
    ): "a bug of ours, of which only the exception is known",
    **{
        ("drivefine_agent/worker_processes.py", f"worker processes must {rule}"): "`advice` says what to do"
        for rule in ("finish", "live")
    },
    (
        "drivefine_agent/evaluation/trajectory_file.py",
        "poses must be {ANSWER_LENGTH} numbers",
    ): "the error of a row, which names its token and trajectory",
    (
        "drivefine_agent/scoring/scorer.py",
        "poses must be finite",
    ): "the caller's own array: nothing else to do",
    ("rl/engine.py", "all processes of a run"): "holds the other process's whole message",
    **{
        ("rl/run_state.py", f"cannot write checkpoint {{{name}}}"): "save_run_state adds what to do"
        for name in ("part", "target")
    },
}

OUR_ERRORS = {
    "DataError", "UnsafePickleError", "DiskFullError", "SceneError", "TrafficError", "TrajectoryError",
    "WorkerError", "MissingPackageError", "DriveFineError", "DamagedPackError", "RewardError",
    "ProcessLostError", "ProbeError",
}  # fmt: skip
EXIT_CALLS = ("sys.exit", "warnings.warn", "parser.error", "SystemExit")

RECEIVED = re.compile(
    r"\b(got|found|missing|is empty|no \w+|none|nothing|not|lacks?|without|twice|has ended)\b"
)
PLACES = re.compile(
    r"path|file|folder|where|token|name|key|source|root|line|scene|log|checkpoint|output|field|column|place|tables|context"
)
NAMES = re.compile(r"\b\w+_\w+\b|'[\w.]+'|\b\w+\.\w+\b|\b[\w.]+=|--\w+|\w+\(\)")
RULE = re.compile(r"\b(must|expected|needs?|may|can|cannot|only|choose|one of|is for)\b")
VERBS = """
    add ask build call change check choose copy correct cut delete drop export fetch filter fit
    free give go install leave look lower make move name open pass pip point prepare put quote raise
    read remove rename repair resample run scale see set shorten start switch take torchrun train try
    unset update use wait write do evaluate keep split load send download replace order sort close let
""".split()
ACTION = re.compile(
    r"(?:^|[:;.,(?!]\s+(?:to \w+ )?|\b(?:or|and|then)\s+)(?:do not )?(?:" + "|".join(VERBS) + r")\b",
    re.IGNORECASE,
)
IS_IT = re.compile(r"(?:is|are|does|do) (?:this|it|they|the)\b[^?]*\?")


@dataclass(frozen=True)
class Message:
    """One error in the code: where it is built, and the text with {...} for values."""

    path: str
    line: int
    kind: str
    text: str
    values: tuple[str, ...]
    words: frozenset[str]
    """Names of arguments and fields in reach."""
    hands_on: bool
    """It holds the text of an error of ours."""

    def faults(self) -> list[str]:
        if self.hands_on:
            return []
        if self.text.strip() in ("", "{}"):
            return ["a message"]
        lacking = []
        text = self.text
        plain = re.sub(r"\{[^{}]*\}", " ", text)
        plain_words = set(re.findall(r"\w+", plain.lower()))
        is_argument = any(
            word in plain_words or word.replace("_", " ") in plain.lower() for word in self.words
        )
        if len(re.findall(r"[A-Za-z]{2,}", plain)) < 2:
            lacking.append("rule")
        if not self.values and not RECEIVED.search(plain) and self.kind not in EXIT_CALLS[:1]:
            lacking.append("received")
        wrapped = self.path in WRAPPED
        if not (
            wrapped
            or is_argument
            or NAMES.search(plain)
            or any(PLACES.search(value) for value in self.values)
        ):
            lacking.append("where")
        is_setting = any("_" in word and word in plain_words for word in self.words)
        rule_is_enough = self.kind in ("ValueError", "TypeError", "KeyError", "parser.error") or is_setting
        acts = ACTION.search(plain) or IS_IT.search(plain) or "strerror" in "".join(self.values)
        if not (wrapped or acts or (rule_is_enough and RULE.search(plain))):
            lacking.append("what to do")
        return lacking


def _name(node: ast.expr) -> str:
    return ast.unparse(node)


class _Module:
    """A parsed file with the texts that its messages may be made of."""

    def __init__(self, path: Path, root: Path = ROOT) -> None:
        self.path = str(path.relative_to(root))
        self.tree = ast.parse(path.read_text())
        self.functions: dict[str, ast.FunctionDef] = {}
        self.constants: dict[str, ast.expr] = {}
        self.imported: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef):
                self.functions[node.name] = node
            elif isinstance(node, ast.ImportFrom):
                self.imported |= {alias.asname or alias.name for alias in node.names}
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.constants[node.targets[0].id] = node.value


@functools.cache
def modules() -> tuple[_Module, ...]:
    return tuple(_Module(path) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))


class _Reader(ast.NodeVisitor):
    """Collects the messages of one module."""

    def __init__(self, module: _Module) -> None:
        self.module = module
        self.messages: list[Message] = []
        self.bare: list[int] = []
        self._functions: list[ast.FunctionDef] = []
        self._classes: list[ast.ClassDef] = []
        self._caught: list[tuple[str | None, set[str]]] = []
        self._reporters = _reporters(module)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._functions.append(node)
        self.generic_visit(node)
        self._functions.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._classes.append(node)
        self.generic_visit(node)
        self._classes.pop()

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type] if node.type else []
        self._caught.append((node.name, {_name(kind).rsplit(".")[-1] for kind in kinds}))
        self.generic_visit(node)
        self._caught.pop()

    def visit_Raise(self, node: ast.Raise) -> None:
        raised = node.exc
        if isinstance(raised, ast.Name) and raised.id[0].isupper() and raised.id != "NotImplementedError":
            self.bare.append(node.lineno)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        kind = _name(node.func)
        is_error = (
            re.fullmatch(r"(\w+\.)*[A-Z]\w*Error", kind) and kind.split(".")[-1] != "NotImplementedError"
        )
        if kind in self._reporters:
            self._add(node, self._reporters[kind], node.args[0])
        elif is_error or kind in EXIT_CALLS:
            parameters = (
                {argument.arg for argument in self._functions[-1].args.args} if self._functions else set()
            )
            if node.args and isinstance(node.args[0], ast.Name) and node.args[0].id in parameters:
                pass  # a reporter: its callers write the message
            elif node.args:
                self._add(node, kind, node.args[0])
            elif is_error:
                self.bare.append(node.lineno)
        self.generic_visit(node)

    def _add(self, node: ast.Call, kind: str, argument: ast.expr) -> None:
        if kind in ("sys.exit", "SystemExit") and not _holds_text(argument):
            return  # an exit code
        values: list[str] = []
        text = self._text(argument, values, 4) or "{" + ", ".join(values) + "}"
        ours = {name for name, kinds in self._caught if name and kinds <= OUR_ERRORS}
        hands_on = any(re.sub(r"^str\((\w+)\)$", r"\1", value) in ours for value in values) if ours else False
        if kind in ("sys.exit", "SystemExit") and self._caught:
            hands_on = hands_on or "error" in values
        self.messages.append(
            Message(
                self.module.path, node.lineno, kind, text, tuple(values), frozenset(self._words()), hands_on
            )
        )

    def _words(self) -> set[str]:
        words: set[str] = set()
        for function in self._functions:
            arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            words |= {argument.arg.lower() for argument in arguments}
        for class_ in self._classes:
            words |= {
                item.target.id.lower()
                for item in class_.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
        return words - {"self", "cls"}

    def _text(self, node: ast.expr, values: list[str], depth: int) -> str:
        """The text, {...} for what is put in; follows constants, local names and helper functions."""
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else ""
        if isinstance(node, ast.JoinedStr):
            return "".join(self._text(value, values, depth) for value in node.values)
        if isinstance(node, ast.FormattedValue):
            values.append(_name(node.value))
            inner = self._text(node.value, [], depth - 1) if depth else ""
            return inner or "{" + re.sub(r"[{}]", "", _name(node.value)) + "}"
        if isinstance(node, ast.BinOp):
            return self._text(node.left, values, depth) + self._text(node.right, values, depth)
        if isinstance(node, ast.IfExp):
            return self._text(node.body, values, depth) + " " + self._text(node.orelse, values, depth)
        if not depth:
            return ""
        if isinstance(node, ast.Name):
            parts = [self._text(value, values, depth - 1) for value in self._assigned(node.id)]
            if not any(parts):
                values.append(node.id)
            return " ".join(parts)
        if isinstance(node, ast.Call):
            function = self._function(_name(node.func).split(".")[-1])
            if function is not None:
                returned = [
                    item.value for item in ast.walk(function) if isinstance(item, ast.Return) and item.value
                ]
                self._functions.append(function)
                text = " ".join(self._text(value, values, depth - 1) for value in returned)
                self._functions.pop()
                return text
            values.append(_name(node))
        if isinstance(node, ast.Attribute):
            values.append(_name(node))
        return ""

    def _assigned(self, name: str) -> list[ast.expr]:
        if self._functions:
            found = [
                item.value
                for item in ast.walk(self._functions[-1])
                if isinstance(item, (ast.Assign, ast.AugAssign))
                and any(
                    isinstance(t, ast.Name) and t.id == name
                    for t in getattr(item, "targets", None) or [item.target]
                )
            ]
            if found:
                return found
        for module in [self.module, *(modules() if name in self.module.imported else ())]:
            if name in module.constants:
                return [module.constants[name]]
        return []

    def _function(self, name: str) -> ast.FunctionDef | None:
        for module in [self.module, *(modules() if name in self.module.imported else ())]:
            if name in module.functions:
                return module.functions[name]
        return None


def _reporters(module: _Module) -> dict[str, str]:
    """Functions that raise an error with their first argument as the whole message, and the error's type."""
    found = {}
    for name, function in module.functions.items():
        for node in ast.walk(function):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and len(node.exc.args) == 1:
                message = node.exc.args[0]
                if isinstance(message, ast.Name) and message.id in [a.arg for a in function.args.args[:1]]:
                    found[name] = _name(node.exc.func)
    return found


def _holds_text(node: ast.expr) -> bool:
    return any(
        isinstance(item, ast.JoinedStr) or isinstance(getattr(item, "value", None), str)
        for item in ast.walk(node)
    )


@functools.cache
def _readers() -> tuple[_Reader, ...]:
    readers = []
    for module in modules():
        reader = _Reader(module)
        reader.visit(module.tree)
        readers.append(reader)
    return tuple(readers)


def test_every_error_says_the_rule_what_was_received_where_and_what_to_do() -> None:
    reports = []
    exempted = set()
    for message in (message for reader in _readers() for message in reader.messages):
        exemption = next(
            (key for key in EXEMPT if key[0] == message.path and message.text.startswith(key[1])), None
        )
        if exemption is not None:
            exempted.add(exemption)
        elif lacking := message.faults():
            reports.append(
                f"{message.path}:{message.line} lacks {', '.join(lacking)}: {message.kind}({message.text!r})"
            )
    assert not reports, "\n" + "\n".join(reports)
    unused = set(EXEMPT) - exempted
    assert not unused, f"exemptions of no message: {sorted(unused)}"


# Errors that have no text, as only our own code sees them.
BARE = {
    "drivefine_agent/synthetic/layout.py": "starts the next try of the layout, in the same file",
}

# Asserts of what cannot happen, beside those that narrow a type (`is not None`, `isinstance`).
ASSERTS = {
    "rl/rewards.py": "shapes of our own arrays",
    "drivefine_agent/data/map_writer.py": "columns of our own tables",
    "drivefine_agent/scoring/cache_codec.py": "parts of our own format",
    "drivefine_agent/scoring/cache_layout.py": "parts of our own format",
    "drivefine_agent/scoring/cache_pack.py": "parts of our own format, and the byte order of the machine",
    "drivefine_agent/training/demonstrations.py": "the configuration has refused it",
}


def test_no_error_is_raised_without_a_message() -> None:
    found = [f"{reader.module.path}:{line}" for reader in _readers() for line in reader.bare]
    assert [place for place in found if place.split(":")[0] not in BARE] == []
    assert {place.split(":")[0] for place in found} == set(BARE), "an exemption of nothing"


def test_asserts_only_narrow_types_or_state_what_cannot_happen() -> None:
    found = [
        (module.path, node)
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Assert)
        and not re.fullmatch(r"[\w.]+ is not None|(not )?isinstance\([^()]*\)", _name(node.test))
    ]
    assert [f"{path}:{node.lineno}: {_name(node.test)}" for path, node in found if path not in ASSERTS] == []
    assert {path for path, _ in found} == set(ASSERTS), "an exemption of nothing"


@pytest.mark.parametrize(
    ("code", "lacking"),
    [
        ("raise DataError(f'a log needs frames, got {count} in {path}: fetch it again')", []),
        ("raise DataError(f'a log needs frames, got {count} in {path}')", ["what to do"]),
        ("raise DataError(f'a log needs frames, got {count}: fetch it again')", ["where"]),
        ("raise DataError('a log needs frames: fetch what num_frames says')", ["received"]),
        ("raise DataError(f'{path}: fetch {count}')", ["rule"]),
        ("raise DataError('')", ["a message"]),
        ("def f(size): raise ValueError(f'size must be positive, got {size}')", []),
        ("def f(size): raise ValueError(f'size is wrong: {size}')", ["what to do"]),
        ("def f(path): return DataError(f'no log at {path}')", ["what to do"]),
        ("def f(text): raise DataError(text)\nf('no log')", ["where", "what to do"]),
        ("_AGAIN = 'fetch it again'\nraise DataError(f'no log at {path}; {_AGAIN}')", []),
        ("try: f()\nexcept DataError as error: raise SceneError(f'{error}: {path}')", []),
        ("try: f()\nexcept OSError as error: raise SceneError(f'{error}: {path}')", ["rule", "what to do"]),
    ],
)
def test_the_walk_finds_what_a_message_lacks(code: str, lacking: list[str], tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.write_text(code)
    reader = _Reader(_Module(file, tmp_path))
    reader.visit(reader.module.tree)
    assert reader.messages[0].faults() == lacking
