"""The search space of a sweep: which values its keys may take, where, and which combinations are tried."""

from __future__ import annotations

import itertools
import json
import math
import operator
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pydantic import Field, model_validator

from tats_core.errors import SpecError, did_you_mean
from tats_core.pipeline.spec import Scalar
from tats_core.specs import StrictModel

Point = dict[str, Scalar | None]
"""Dotted key → value, of the keys that apply."""

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt,
    ">": operator.gt,
}  # fmt: skip
_COMPARISON = re.compile(r"\s*(\S+)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*")


class Range(StrictModel):
    """Values that are drawn; exactly one of the four is given."""

    uniform: tuple[float, float] | None = Field(None, description="any number between the two")
    loguniform: tuple[float, float] | None = Field(None, description="the same, its logarithm drawn evenly")
    int_: tuple[int, int] | None = Field(None, alias="int", description="a whole number, both ends included")
    choice: tuple[Scalar | None, ...] | None = Field(None, min_length=1, description="one of these")

    @model_validator(mode="after")
    def _one_kind(self) -> Range:
        given = [
            name for name in ("uniform", "loguniform", "int_", "choice") if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise ValueError("give exactly one of uniform, loguniform, int and choice")
        ends = self.uniform or self.loguniform or self.int_
        if ends and not ends[0] < ends[1]:
            raise ValueError(f"the lower end comes first, not {ends[0]:g} and {ends[1]:g}")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError("loguniform needs a lower end above 0")
        return self

    def draw(self, chance: random.Random) -> Scalar | None:
        """Return one value."""
        if self.uniform:
            return chance.uniform(*self.uniform)
        if self.loguniform:
            low, high = map(math.log, self.loguniform)
            return math.exp(chance.uniform(low, high))
        if self.int_:
            return chance.randint(*self.int_)
        assert self.choice
        return chance.choice(self.choice)

    @property
    def corners(self) -> tuple[Scalar | None, ...]:
        """Values that stand for all when the space is checked: the ends, or each choice."""
        return self.choice or self.uniform or self.loguniform or self.int_ or ()


Values = tuple[Scalar | None, ...] | Range


@dataclass(frozen=True)
class Constraint:
    """`left operator right`; a side is a key of the space or a value. Holds where a key does not apply."""

    text: str
    left: str
    compare: Callable[[Any, Any], bool]
    right: str

    @classmethod
    def parse(cls, text: str, keys: Sequence[str]) -> Constraint:
        """Read one.

        Raises:
            SpecError: it is no comparison, or names no key of the space.
        """
        found = _COMPARISON.fullmatch(text)
        if not found:
            raise SpecError(f"'{text}' is no comparison; write: KEY <= KEY or KEY != value")
        left, sign, right = found.groups()
        if left not in keys:
            raise SpecError(f"'{text}' compares no key of the space{did_you_mean(left, keys)}")
        return cls(text, left, _OPERATORS[sign], right)

    def holds(self, point: Mapping[str, Any]) -> bool:
        """Tell whether `point` may be tried."""
        if self.left not in point:
            return True
        if "." in self.right and not _is_number(self.right):
            if self.right not in point:
                return True
            right: Any = point[self.right]
        else:
            right = _value(self.right)
        return self.compare(point[self.left], right)


@dataclass(frozen=True)
class Space:
    """The keys with their values; `where` says under which values of other keys a key applies."""

    values: Mapping[str, Values]
    where: Mapping[str, Mapping[str, tuple[Scalar | None, ...]]]
    constraints: tuple[Constraint, ...]

    def applies(self, key: str, point: Mapping[str, Any]) -> bool:
        """Tell whether `key` means anything beside the values in `point`."""
        conditions = (one for pattern, one in self.where.items() if fnmatchcase(key, pattern))
        return all(
            other in point and point[other] in allowed
            for condition in conditions
            for other, allowed in condition.items()
        )

    @property
    def order(self) -> list[str]:
        """The keys, each after those that its conditions name."""
        free = [key for key in self.values if not any(fnmatchcase(key, pattern) for pattern in self.where)]
        return [*free, *(key for key in self.values if key not in free)]

    def reduced(self, point: Mapping[str, Any]) -> Point:
        """Return `point` without the keys that do not apply, in the order of the file."""
        kept: Point = {}
        for key in self.order:
            if key in point and self.applies(key, kept):
                kept[key] = point[key]
        return {key: kept[key] for key in self.values if key in kept}

    def allowed(self, point: Mapping[str, Any]) -> bool:
        """Tell whether all constraints hold."""
        return all(one.holds(point) for one in self.constraints)

    def grid(self) -> Iterator[Point]:
        """Yield every combination once; the last key changes fastest."""
        lists = {key: one.corners if isinstance(one, Range) else one for key, one in self.values.items()}
        seen: set[str] = set()
        for row in itertools.product(*lists.values()):
            point = self.reduced(dict(zip(lists, row, strict=True)))
            name = json.dumps(point)
            if name not in seen and self.allowed(point):
                seen.add(name)
                yield point

    def corners(self) -> Iterator[Point]:
        """Yield points that hold each key's first, last and every listed value once, for a check."""
        ends = {key: one.corners if isinstance(one, Range) else one for key, one in self.values.items()}
        first = {key: values[0] for key, values in ends.items()}
        for pattern_of in self._settings():
            for key, values in ends.items():
                for value in values:
                    point = self.reduced(first | pattern_of | {key: value})
                    if self.allowed(point):
                        yield point

    def _settings(self) -> list[Point]:
        """Values of the other keys under which each condition is met."""
        met = ({other: allowed[0] for other, allowed in one.items()} for one in self.where.values())
        return [{}, *met]

    def draw(self, chance: random.Random, tries: int = 1000) -> Point:
        """Draw a point that the constraints allow.

        Raises:
            SpecError: none was found.
        """
        for _ in range(tries):
            drawn = {
                key: one.draw(chance) if isinstance(one, Range) else chance.choice(one)
                for key, one in self.values.items()
            }
            point = self.reduced(drawn)
            if self.allowed(point):
                return point
        raise SpecError(f"the constraints allow none of {tries} points that were drawn; loosen them")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
