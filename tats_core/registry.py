"""What a name in YAML or on the command line stands for: samplers, optimisers, stage kinds, commands, …

A registry knows its members by name and imports one when it is first asked for. Members come from here (one
file, and one line of the registry's mapping), or from an installed package that declares an entry point in
the registry's group::

    [project.entry-points."tats.samplers"]
    bandit = "tats_bandit.sampler:BanditConfig"
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import Distribution, EntryPoint, EntryPoints, distributions, entry_points
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from tats_core.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core.core_schema import CoreSchema

Member = TypeVar("Member")


@dataclass
class Registry(Generic[Member]):
    """Name → member, imported at the first look-up.

    A plugin that cannot be imported raises one sentence, and only when its member is asked for.
    """

    what: str
    """How a member is called in messages: sampler."""
    group: str
    """The entry points of plugins: tats.samplers."""
    base: type
    """What each member is an instance or a subclass of."""
    shipped: dict[str, str]
    """Name → `"module:attribute"` of the members of this package."""
    _members: dict[str, Member] = field(default_factory=dict, init=False)

    def __getitem__(self, name: str) -> Member:
        """Return a member.

        Raises:
            SpecError: no member of this name, or its package cannot be imported.
        """
        if name not in self._members:
            self._members[name] = self._load(name)
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        """Yield all names without importing anything: those of this package in their order, then plugins'."""
        yield from dict.fromkeys([*self.shipped, *self._members, *sorted(self._plugins.names)])

    def __contains__(self, name: object) -> bool:
        return name in tuple(self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def items(self) -> Iterator[tuple[str, Member]]:
        """Yield each name with its member, without plugins that cannot be imported."""
        for name in self:
            try:
                yield name, self[name]
            except SpecError:  # who asks for it by name is told why
                continue

    def module(self, name: str) -> str:
        """Return the module of a member."""
        _ = self[name]
        return self._points(name)[0].module

    def distribution(self, name: str) -> Distribution | None:
        """Return the installed package that a member comes from; None for this one."""
        points = self._points(name)
        return points[0].dist if points else None

    def _points(self, name: str) -> list[EntryPoint]:
        """Return the entry points of a name, that of this package first."""
        shipped = [EntryPoint(name, self.shipped[name], self.group)] if name in self.shipped else []
        return [*shipped, *self._plugins.select(name=name)]

    @cached_property
    def _plugins(self) -> EntryPoints:
        return entry_points(group=self.group)

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Refuse a value of `Annotated[str, registry]` that names no member; of a tuple, each name."""
        from pydantic_core.core_schema import no_info_after_validator_function  # here: `--help` does without

        return no_info_after_validator_function(self._named, handler(source))

    def _named(self, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in (value,) if isinstance(value, str) else value:
            try:
                self[name]
            except SpecError as error:
                raise ValueError(str(error)) from error
        return value

    def _load(self, name: str) -> Member:
        points = self._points(name)
        if not points:
            raise SpecError(f"no {self.what} '{name}'{did_you_mean(name, self)}")
        packages = [point.dist.name if point.dist else "tats-core" for point in points]
        if len(points) > 1:
            raise SpecError(
                f"the {self.what} '{name}' is registered by more than one package: {', '.join(packages)}; "
                "rename or uninstall one of them"
            )
        if name in self.shipped:
            return cast("Member", points[0].load())
        of = f"the {self.what} '{name}' of the package '{packages[0]}'"
        try:
            member = points[0].load()
        except Exception as error:  # somebody else's module may raise anything
            why = f"{type(error).__name__}: {error}"
            raise SpecError(f"{of} cannot be imported ({why}); repair or uninstall it") from error
        if not isinstance(member, self.base) and not (
            isinstance(member, type) and issubclass(member, self.base)
        ):
            raise SpecError(f"{of} is '{points[0].value}', which is no {self.base.__name__}")
        return cast("Member", member)


def plugins() -> Iterator[tuple[Distribution, EntryPoint]]:
    """Yield what installed packages register here, with the package."""
    for package in distributions():
        yield from ((package, point) for point in package.entry_points if point.group.startswith("tats."))
