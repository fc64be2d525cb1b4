"""The digest of the code that a stage depends on.

A stage depends on the module of its kind, on those of the members that its configuration chooses, and on
every module of tats_core (or of the same plugin) that these import, directly or not. A registry names its
members as text, which is no import: what is not chosen does not count.

A module's digest is that of its syntax tree without what cannot change an output: comments, docstrings, the
texts of errors, the names in a registry, and what only checks or describes a configuration's field (its value
is in the key). A field that is off by default is left out altogether: see `specs.identity`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

PACKAGE = "tats_core"

# These cannot change an output: messages, the reading of a configuration (the key holds its result), the
# machine's description, logs, checkpoints, counts of FLOPs, replays, the engine around the stages.
_NEUTRAL = (
    "tats_core.errors",
    "tats_core.files",
    "tats_core.machine",
    "tats_core.registry",
    "tats_core.specs",
    "tats_core.training.arithmetic",
    "tats_core.training.checkpoint",
    "tats_core.training.events",
    "tats_core.training.measure",
    "tats_core.training.replay",
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
    """Return module → digest (16 hex digits) for `modules` and all they import of their packages."""
    named = set(modules)
    known: dict[str, str] = {}
    waiting = [(part, part in named) for module in named for part in _with_packages(module)]
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
    is_kind = module.startswith(_STAGES) and module != _STAGES + "base"
    # The package itself holds its version, which no stage reads.
    return module == PACKAGE or (_within(module, _NEUTRAL) and not is_kind)


def _within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def changed(known: Mapping[str, str]) -> list[str]:
    """Return the modules whose code on disk is no longer what `digests` read in this process.

    A worker that starts now would run other code than the key says.
    """
    return [module for module, digest in known.items() if _digest_now(module) != digest]


def _digest_now(module: str) -> str:
    try:
        text = _path(module).read_bytes()
        return _parsed(module)[0] if text == _text(module) else digest_of(ast.parse(text))
    except (OSError, SyntaxError):
        return ""  # it is being edited


@cache
def _text(module: str) -> bytes:
    return _path(module).read_bytes()


def _path(module: str) -> Path:
    path = _file(module)
    assert path is not None, f"{module} has no file"
    return path


@cache
def _parsed(module: str) -> tuple[str, tuple[str, ...]]:
    """Return a module's digest, and the modules that it imports."""
    tree = ast.parse(_text(module), filename=str(_path(module)))
    imported = set(_imports(tree, module, _path(module).name == "__init__.py"))
    return digest_of(tree), tuple(sorted(imported))


def digest_of(tree: ast.Module) -> str:
    """Return the digest of a module's syntax tree; the tree loses what cannot change an output."""
    return hashlib.sha256(ast.dump(_Essence().visit(tree)).encode()).hexdigest()[:16]


class _Essence(ast.NodeTransformer):
    """Takes away what cannot change an output."""

    def visit(self, node: ast.AST) -> ast.AST:
        """Take it from `node` and all that is in it."""
        super().generic_visit(node)
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                node.body = [part for part in node.body if not _says_nothing(part)] or [ast.Pass()]
            case ast.Raise(exc=ast.Call() as call):
                call.args = [arg for arg in call.args if not _is_text(arg)]
            case ast.Call() if _calls(node, "Field"):
                # Its limits and its description: what it is by default stays.
                node.keywords = [word for word in node.keywords if word.arg in ("default", "default_factory")]
        return node


def _says_nothing(node: ast.stmt) -> bool:
    match node:
        case ast.Expr(value=value):  # a docstring, or the explanation under a field
            return _is_text(value)
        case ast.AnnAssign(value=ast.Call() as call) if _calls(call, "Field"):
            return _is_off(call) or any(_names(part, "NotIdentity") for part in ast.walk(node.annotation))
        case ast.Assign(value=ast.Call() as call) | ast.AnnAssign(value=ast.Call() as call):
            return _calls(call, "Registry")
    return False


def _calls(call: ast.Call, name: str) -> bool:
    return _names(call.func.value if isinstance(call.func, ast.Subscript) else call.func, name)


def _names(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_off(field: ast.Call) -> bool:
    match [*field.args, *(word.value for word in field.keywords)]:
        case [ast.Constant(value=None | False)] | [ast.Tuple(elts=[])]:
            return True
        case [ast.Name(id="dict" | "tuple" | "list")]:
            return True
    return False


def _imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[str]:
    packages = (PACKAGE, module.split(".")[0])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield from _with_packages(name.name, packages)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join(filter(None, (*above, base)))
            yield from _with_packages(base, packages)
            for name in node.names:
                # `from tats_core.data import manifest` imports a module, `... import BENCHMARKS` a name.
                yield from _with_packages(f"{base}.{name.name}", packages)


def _with_packages(module: str, packages: Iterable[str] | None = None) -> Iterator[str]:
    """Yield those of a module and of the packages around it that are files, in `packages` (None: in any)."""
    parts = module.split(".")
    if packages is None or parts[0] in packages:
        for length in range(1, len(parts) + 1):
            if _file(".".join(parts[:length])):
                yield ".".join(parts[:length])


@cache
def _file(module: str) -> Path | None:
    """Return the file of a module, if it is one; its package must be installed or be imported."""
    loaded = sys.modules.get(module)
    if loaded is not None and loaded.__file__ is not None:
        return Path(loaded.__file__)
    package, _, name = module.rpartition(".")
    if not package:
        spec = importlib.util.find_spec(module)
        return Path(spec.origin) if spec is not None and spec.origin is not None else None
    parent = _file(package)
    if parent is None or parent.name != "__init__.py":
        return None
    paths = (parent.parent / f"{name}.py", parent.parent / name / "__init__.py")
    return next((path for path in paths if path.is_file()), None)
