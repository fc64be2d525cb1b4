from __future__ import annotations

from tats_core.store.key_diff import Change, between, in_words

OLD = {
    "kind": "grow/1",
    "config": {"model": {"depth": 2}, "lr": 0.1, "only_once": True},
    "code": {"a": "1", "b": "2", "c": "3"},
    "inputs": [{"kind": "make", "digest": "x"}],
    "external": {"ssv2": "e"},
}


def test_equal_components_differ_in_nothing():
    assert between(OLD, OLD) == ()


def test_each_component_is_told_with_what_was_and_what_is():
    new = {
        "kind": "grow/2",
        "config": {"model": {"depth": 4}, "lr": 0.1},
        "code": {"a": "1", "b": "3", "d": "1"},
        "inputs": [{"kind": "make", "digest": "y"}],
        "external": {"ssv2": "f"},
    }
    changes = between(OLD, new)
    assert changes == (
        Change("config", "model.depth", 2, 4),
        Change("config", "only_once", True, None),
        Change("code", "b", "2", "3"),
        Change("code", "c", "3", None),
        Change("code", "d", None, "1"),
        Change("inputs", "make", "x", "y"),
        Change("external", "ssv2", "e", "f"),
        Change("kind", "kind", "grow/1", "grow/2"),
    )
    assert in_words(changes) == [
        "model.depth: 2 → 4",
        "only_once: true → false",
        "code changed: b, c (gone), d (new)",
        "inputs changed: make",
        "data changed on disk: ssv2",
        "grow/1 → grow/2",
    ]


def test_of_many_modules_the_first_are_named_and_the_others_counted():
    code = dict.fromkeys("abcdef", "1")
    new = {"code": dict.fromkeys(code, "2")}
    assert in_words(between({"code": code}, new)) == ["code changed: a, b, c, d and 2 more"]


def test_what_is_not_known_yet_is_not_compared():
    assert between(OLD, {"config": {**OLD["config"], "lr": 0.2}}) == (Change("config", "lr", 0.1, 0.2),)


def test_gathered_inputs_are_told_by_their_axes_and_equal_ones_cancel_out():
    def inputs(**digests: str) -> dict[str, object]:
        return {"inputs": [{"kind": "grow", "axes": {"x": x}, "digest": d} for x, d in digests.items()]}

    assert in_words(between(inputs(a="1", b="1"), inputs(a="1", b="2", c="1"))) == [
        "inputs changed: grow[b], grow[c] (new)"
    ]
    assert in_words(between(inputs(a="1", b="1"), inputs(a="1"))) == ["inputs changed: grow[b] (gone)"]
