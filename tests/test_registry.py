from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from tats_core.errors import SpecError
from tats_core.registry import Registry


def _registry() -> Registry[type[Fraction]]:
    return Registry("number", "tats.test_numbers", Fraction, {"fraction": "fractions:Fraction"})


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Put a distribution with one module and one entry point on the path, as pip would unpack it."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(package: str, point: str, code: str) -> None:
        module = package.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[tats.test_numbers]\n{point}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


_HALF = "from fractions import Fraction\nclass Half(Fraction): pass\n"


def test_a_member_is_imported_when_it_is_asked_for() -> None:
    registry = _registry()
    assert list(registry) == ["fraction"]
    assert "fraction" in registry
    assert registry["fraction"] is Fraction
    assert registry.distribution("fraction") is None


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"^no number 'fractoin'; did you mean 'fraction'\?$"):
        _registry()["fractoin"]


def test_a_plugin_is_found_by_its_entry_point(install: Callable[[str, str, str], None]) -> None:
    install("lab-half", "half = lab_half:Half", _HALF)
    registry = _registry()
    assert list(registry) == ["fraction", "half"]
    assert registry["half"](1, 2) == Fraction(1, 2)
    distribution = registry.distribution("half")
    assert distribution is not None
    assert (distribution.name, distribution.version) == ("lab-half", "1.0")


def test_a_plugin_that_cannot_be_imported_is_named_only_when_it_is_asked_for(
    install: Callable[[str, str, str], None],
) -> None:
    install("lab-broken", "broken = lab_broken:Half", "import no_such_module\n")
    registry = _registry()
    assert list(registry) == ["fraction", "broken"]
    assert registry["fraction"] is Fraction
    with pytest.raises(
        SpecError, match=r"^the number 'broken' of the package 'lab-broken' cannot be imp.*no_such"
    ):
        registry["broken"]


def test_a_plugin_that_is_something_else_is_refused(install: Callable[[str, str, str], None]) -> None:
    install("lab-wrong", "wrong = lab_wrong:Half", "Half = dict\n")
    with pytest.raises(SpecError, match=r"'lab-wrong' is 'lab_wrong:Half', which is no Fraction"):
        _registry()["wrong"]


def test_a_name_that_two_packages_claim_is_refused_with_both(
    install: Callable[[str, str, str], None],
) -> None:
    install("lab-half", "fraction = lab_half:Half", _HALF)
    with pytest.raises(SpecError, match="more than one package: tats-core, lab-half; rename or uninstall"):
        _registry()["fraction"]
