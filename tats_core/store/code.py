"""The digest of the code that a stage depends on.

A module's digest is that of its syntax tree without docstrings, so comments and formatting do not change it.
A stage depends on its module and on every module of tats_core that this imports, directly or not.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

PACKAGE = "tats_core"
_ROOT = Path(__file__).resolve().parents[1]

# These cannot change an output: messages, the reading of a configuration (the key holds its result), the
# machine's description, logs, checkpoints, the engine around the stages.
_NEUTRAL = (
    "tats_core.errors",
    "tats_core.files",
    "tats_core.machine",
    "tats_core.registry",
    "tats_core.specs",
    "tats_core.training.checkpoint",
    "tats_core.training.events",
    "tats_core.addresses",
    "tats_core.launch",
    "tats_core.pipeline",
    "tats_core.stages",
    "tats_core.store",
    "tats_core.tracking",
)
# These only draw: a long training must not run again for another colour. A stage kind whose output is a
# drawing names them in its `code`.
_DRAWN = ("tats_core.report", "tats_core.training.pictures")
_STAGES = "tats_core.stages."


@cache
def digests(modules: tuple[str, ...]) -> Mapping[str, str]:
    """Return module → digest (16 hex digits) for `modules` and all they import from tats_core."""
    named = set(modules)
    known: dict[str, str] = {}
    waiting = [(part, part in named) for module in named for part in list(_with_packages(module)) or [module]]
    while waiting:
        module, as_output = waiting.pop()
        drawn = _within(module, _DRAWN)
        if module in known or _neutral(module) or (drawn and not as_output):
            continue
        digest, imported = _parsed(module)
        known[module] = digest
        waiting.extend((name, drawn) for name in imported)
    return dict(sorted(known.items()))


def _neutral(module: str) -> bool:
    if module.startswith(_STAGES) and module != _STAGES + "base":
        return False
    # The package itself holds its version, which no stage reads.
    return module == PACKAGE or _within(module, _NEUTRAL)


def _within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def changed(known: Mapping[str, str]) -> list[str]:
    """Return the modules whose code on disk is no longer what `digests` read in this process.

    A worker that starts now would run other code than the key says.
    """
    return [module for module, digest in known.items() if _digest_now(module) != digest]


def _digest_now(module: str) -> str:
    path = _path(module)
    try:
        text = path.read_bytes()
        return _parsed(module)[0] if text == _text(module) else digest_of(ast.parse(text))
    except (OSError, SyntaxError):
        return ""  # it is being edited


@cache
def _text(module: str) -> bytes:
    return _path(module).read_bytes()


def _path(module: str) -> Path:
    # A stage kind may live outside of the package; of what it imports, only tats_core counts.
    return _file(module) or Path(sys.modules[module].__file__ or "")


@cache
def _parsed(module: str) -> tuple[str, tuple[str, ...]]:
    path = _path(module)
    tree = ast.parse(_text(module), filename=str(path))
    imported = tuple(sorted(set(_imports(tree, module, path.name == "__init__.py"))))
    return digest_of(tree), imported


def digest_of(tree: ast.Module) -> str:
    """Return the digest of a module's syntax tree; the tree loses its docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # Every string that is a statement: a docstring, or the explanation under a field.
            node.body = [statement for statement in node.body if not _is_text(statement)] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _is_text(node: ast.stmt) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield from _with_packages(name.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, *([node.module] if node.module else [])])
            yield from _with_packages(base)
            for name in node.names:
                # `from tats_core.data import manifest` imports a module, `... import BENCHMARKS` a name.
                if _file(f"{base}.{name.name}"):
                    yield from _with_packages(f"{base}.{name.name}")


def _with_packages(module: str) -> Iterator[str]:
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return
    for length in range(1, len(parts) + 1):
        if _file(".".join(parts[:length])):
            yield ".".join(parts[:length])


@cache
def _file(module: str) -> Path | None:
    first, *rest = module.split(".")
    if first != PACKAGE:
        return None
    base = _ROOT.joinpath(*rest)
    for path in (base.with_suffix(".py") if rest else base / "__init__.py", base / "__init__.py"):
        if path.is_file():
            return path
    return None
