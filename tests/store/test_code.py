from __future__ import annotations

import ast
import importlib

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
    assert list(code.digests((__name__,))) == [__name__]


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
