from __future__ import annotations

import ast
import importlib

import pytest

from tats_core.store import code

WITH = '''
"""What it is."""
import os   # a comment

class A:
    """Its docstring."""
    x: int = 1
    """What x is."""

    def f(self, a,
          b):
        """Adds."""
        return a + b
'''

WITHOUT = """
import os
class A:
    x: int = 1
    def f(self, a, b):
        return (a + b)
"""


def digest(text: str) -> str:
    return code.digest_of(ast.parse(text))


def test_comments_docstrings_and_layout_do_not_change_the_digest():
    assert digest(WITH) == digest(WITHOUT)


def test_every_change_of_what_the_code_does_changes_the_digest():
    assert digest(WITH) != digest(WITH.replace("a + b", "a - b"))
    assert digest(WITH) != digest(WITH.replace("= 1", "= 2"))
    assert digest('x = "a"') != digest('x = "b"')


FIELDS = """
class Recipe(StrictModel):
    lr: float = Field(0.1, gt=0, description="the learning rate")
    tags: tuple[str, ...] = Field((), description="names")
    log_every: Annotated[int, NotIdentity] = Field(10, description="steps")
"""


@pytest.mark.parametrize(
    "added",
    [
        '    flow: float | None = Field(None, gt=0, description="off")',
        '    mirror: bool = Field(False, description="off")',
        '    more: dict[str, int] = Field(default_factory=dict, description="none")',
        '    cache: Annotated[int, NotIdentity] = Field(3, description="of the machine")',
    ],
)
def test_a_field_that_is_added_and_off_leaves_the_digest(added):
    assert digest(FIELDS + added) == digest(FIELDS)


def test_limits_and_descriptions_of_a_field_do_not_count_and_its_default_does():
    assert digest(FIELDS) == digest(FIELDS.replace("gt=0", "ge=0").replace("the learning rate", "the rate"))
    assert digest(FIELDS) == digest(FIELDS.replace("Field(10", "Field(20"))
    assert digest(FIELDS) != digest(FIELDS.replace("Field(0.1", "Field(0.2"))
    assert digest(FIELDS) != digest(FIELDS.replace("Field(()", 'Field(("a",)')), "no longer off"
    assert digest(FIELDS) != digest(FIELDS + '    beta: float = Field(0.9, description="on")')


def test_the_texts_of_errors_do_not_count_and_when_they_are_raised_does():
    text = 'if x > 1:\n    raise DataError(f"{x} is large")'
    assert digest(text) == digest(text.replace("is large", "is more than {limit}"))
    assert digest(text) != digest(text.replace("x > 1", "x > 2"))
    assert digest(text) != digest(text.replace("DataError", "SpecError"))
    assert digest("raise Exit(1)") != digest("raise Exit(2)")


def test_the_members_that_a_registry_names_do_not_count():
    text = 'SAMPLERS: Final = Registry[type[A]]("sampler", "tats.samplers", A, {"tats": "m:T"})\nx = 1'
    assert digest(text) == digest(text.replace('"m:T"', '"m:T", "mine": "n:T"')) == digest("x = 1")


def test_a_function_of_which_only_the_docstring_stays_is_still_a_function():
    assert digest('def f():\n    """Later."""') == digest("def f():\n    pass")


def test_a_module_counts_with_all_that_it_imports_from_the_package():
    digests = code.digests(("tats_core.data.manifest",))
    assert "tats_core.data.manifest" in digests
    assert "tats_core.data" in digests, "a package runs when one of its modules is imported"
    assert "tats_core.models.vit" not in digests


def test_imports_inside_functions_count():
    # The stage kinds import what needs torch only when they run.
    digests = code.digests(("tats_core.stages.data",))
    assert {"tats_core.data.generate", "tats_core.data.synthetic"} <= digests.keys()


def test_the_engine_and_the_messages_do_not_count():
    digests = code.digests(("tats_core.stages.report", "tats_core.report.results"))
    assert "tats_core.stages.report" in digests
    assert "tats_core.report.results" in digests
    assert (
        not {
            "tats_core.errors",
            "tats_core.specs",
            "tats_core.stages.base",
            "tats_core.store.run",
        }
        & digests.keys()
    )


def test_a_stage_kind_outside_of_the_package_counts_itself():
    assert list(code.digests((__name__,))) == ["tests", __name__]


def test_a_package_outside_counts_with_the_modules_of_its_own_that_it_imports(tmp_path, monkeypatch):
    (tmp_path / "lab_kinds").mkdir()
    (tmp_path / "lab_kinds" / "__init__.py").write_text("")
    (tmp_path / "lab_kinds" / "kind.py").write_text(
        "import json\nfrom lab_kinds import helpers\nfrom tats_core.models import tokens\n"
    )
    (tmp_path / "lab_kinds" / "helpers.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    ours = ["lab_kinds", "lab_kinds.helpers", "lab_kinds.kind"]
    assert list(code.digests(("lab_kinds.kind",))) == [
        *ours,
        "tats_core.models",
        "tats_core.models.tokens",
    ]


def test_a_module_that_is_edited_while_this_process_runs_is_known(tmp_path, monkeypatch):
    path = tmp_path / "edited_kind.py"
    path.write_text(WITH)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("edited_kind")
    known = code.digests(("edited_kind",))
    assert code.changed(known) == []
    path.write_text(WITHOUT)
    assert code.changed(known) == [], "the same code in another layout"
    path.write_text(WITHOUT.replace("a + b", "a - b"))
    assert code.changed(known) == ["edited_kind"]
    path.write_text("def half(")
    assert code.changed(known) == ["edited_kind"]


def test_pictures_count_only_where_they_are_the_output():
    drawn = {"tats_core.report.masks", "tats_core.report.charts", "tats_core.training.pictures"}
    pretrain = code.digests(("tats_core.stages.pretrain",))
    assert not drawn & pretrain.keys()
    assert "tats_core.training.health" in pretrain
    evaluate = code.digests(("tats_core.stages.evaluate", "tats_core.report.classes"))
    assert "tats_core.report.classes" in evaluate
    assert not drawn & evaluate.keys()
    assert "tats_core.report.charts" in code.digests(("tats_core.report.charts",))
