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

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from tats_core.errors import SpecError, did_you_mean
from tats_core.pipeline.spec import Scalar
from tats_core.specs import StrictModel

Point = dict[str, Scalar | None]
"""Dotted key → value, of the keys that apply."""

TRIES = 1000
"""How many points are drawn before it is said that none fits."""

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt,
    ">": operator.gt,
}  # fmt: skip
_COMPARISON = re.compile(r"\s*(\S+)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*")


class Range(StrictModel):
    """How values are drawn; exactly one of the four keys is given."""

    uniform: tuple[float, float] | None = Field(None, description="any number between the two")
    loguniform: tuple[float, float] | None = Field(None, description="the same, uniform in the logarithm")
    int_: tuple[int, int] | None = Field(None, alias="int", description="an integer, both ends included")
    choice: tuple[Scalar | None, ...] | None = Field(None, min_length=1, description="one of these")

    @model_validator(mode="after")
    def _one_kind(self) -> Range:
        if [self.uniform, self.loguniform, self.int_, self.choice].count(None) != 3:
            raise ValueError("give exactly one of uniform, loguniform, int and choice")
        if self.ends and not self.ends[0] < self.ends[1]:
            raise ValueError("the lower end comes first, not {:g} and {:g}".format(*self.ends))
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError("loguniform needs a lower end above 0")
        return self

    @model_serializer(mode="wrap")
    def _given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {kind: values for kind, values in dump(self).items() if values is not None}

    @classmethod
    def of(cls, values: Values) -> Range:
        """Return a list of values, too, as a range."""
        return values if isinstance(values, Range) else cls(choice=values)

    @property
    def ends(self) -> tuple[float, float] | None:
        """The lowest and the highest value; None of a list."""
        return self.uniform or self.loguniform or self.int_

    def draw(self, rng: random.Random) -> Scalar | None:
        """Return one value."""
        if self.uniform:
            return rng.uniform(*self.uniform)
        if self.loguniform:
            low, high = map(math.log, self.loguniform)
            return math.exp(rng.uniform(low, high))
        if self.int_:
            return rng.randint(*self.int_)
        assert self.choice
        return rng.choice(self.choice)

    @property
    def examples(self) -> tuple[Scalar | None, ...]:
        """The values that a check of the space tries: the ends, or each choice."""
        return self.choice or self.ends or ()


Values = tuple[Scalar | None, ...] | Range
"""The values of a key as the file gives them."""


def values_text(values: Values) -> str:
    """Return the values of a key for people: `1, 2, 4` or `0.1 to 0.3 (uniform)`."""
    if isinstance(values, Range) and values.ends:
        ((kind, (low, high)),) = values.model_dump(by_alias=True).items()
        return f"{low:g} to {high:g} ({kind})"
    return ", ".join(json.dumps(value, ensure_ascii=False).strip('"') for value in Range.of(values).examples)


@dataclass(frozen=True)
class Constraint:
    """`left operator right`; a side is a key of the space or a value. Holds where a key does not apply."""

    text: str
    left: str
    compare: Callable[[Any, Any], bool]
    right: str

    @classmethod
    def parse(cls, text: str, keys: Sequence[str]) -> Constraint:
        """Read a constraint.

        Raises:
            SpecError: it is no comparison, or names no key of the space.
        """
        match = _COMPARISON.fullmatch(text)
        if not match:
            raise SpecError(f"'{text}' is no comparison; write: KEY <= KEY or KEY != value")
        left, sign, right = match.groups()
        if left not in keys:
            raise SpecError(f"'{text}' compares no key of the space{did_you_mean(left, keys)}")
        return cls(text, left, _OPERATORS[sign], right)

    def holds(self, point: Mapping[str, Any]) -> bool:
        """Return whether `point` may be tried."""
        try:
            right = json.loads(self.right)
        except ValueError:
            right = point.get(self.right, ...) if "." in self.right else self.right
        return self.left not in point or right is ... or self.compare(point[self.left], right)


@dataclass(frozen=True)
class Space:
    """The keys with their values; `where` says under which values of other keys a key applies."""

    values: Mapping[str, Range]
    where: Mapping[str, Mapping[str, tuple[Scalar | None, ...]]]
    constraints: tuple[Constraint, ...]

    def applies(self, key: str, point: Mapping[str, Any]) -> bool:
        """Return whether `key` applies beside the values in `point`."""
        conditions = (condition for pattern, condition in self.where.items() if fnmatchcase(key, pattern))
        return all(
            other in point and point[other] in allowed
            for condition in conditions
            for other, allowed in condition.items()
        )

    @property
    def order(self) -> list[str]:
        """The keys, each after those that its conditions name."""
        return sorted(self.values, key=lambda key: any(fnmatchcase(key, pattern) for pattern in self.where))

    def reduced(self, point: Mapping[str, Any]) -> Point:
        """Return `point` without the keys that do not apply, in the order of the file."""
        applicable: Point = {}
        for key in self.order:
            if key in point and self.applies(key, applicable):
                applicable[key] = point[key]
        return {key: applicable[key] for key in self.values if key in applicable}

    def allowed(self, point: Mapping[str, Any]) -> bool:
        """Return whether all constraints hold."""
        return all(constraint.holds(point) for constraint in self.constraints)

    def grid(self) -> Iterator[Point]:
        """Yield every combination once; the last key changes fastest."""
        seen: set[str] = set()
        for row in itertools.product(*(values.examples for values in self.values.values())):
            point = self.reduced(dict(zip(self.values, row, strict=True)))
            identity = json.dumps(point)
            if identity not in seen and self.allowed(point):
                seen.add(identity)
                yield point

    def corners(self) -> Iterator[Point]:
        """Yield points that hold each key's ends and every listed value once, for a check."""
        first = {key: values.examples[0] for key, values in self.values.items()}
        met = ({other: values[0] for other, values in condition.items()} for condition in self.where.values())
        for setting in ({}, *met):  # under which each condition is met
            for key, values in self.values.items():
                for value in values.examples:
                    point = self.reduced(first | setting | {key: value})
                    if self.allowed(point):
                        yield point

    def draw(self, rng: random.Random) -> Point:
        """Draw a point that the constraints allow.

        Raises:
            SpecError: none of `TRIES` points is allowed.
        """
        for _ in range(TRIES):
            point = self.reduced({key: values.draw(rng) for key, values in self.values.items()})
            if self.allowed(point):
                return point
        raise SpecError(f"the constraints allow none of {TRIES} points that were drawn; loosen them")
