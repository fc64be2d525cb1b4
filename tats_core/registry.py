"""What a name in YAML or on the command line stands for: samplers, optimisers, stage kinds, commands, …

A registry knows its members by name and imports one when it is first asked for. Members come from here (one
file, and one line of the registry's mapping), or from an installed package that declares an entry point in
the registry's group::

    [project.entry-points."tats.samplers"]
    bandit = "tats_bandit.sampler:BanditConfig"
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

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
        yield from dict.fromkeys([*self.shipped, *self._members, *sorted(self._plugins)])

    def __contains__(self, name: object) -> bool:
        return name in self.shipped or name in self._members or name in self._plugins

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def items(self) -> Iterator[tuple[str, Member]]:
        """Yield each name with its member, without plugins that cannot be imported."""
        for name in self:
            try:
                yield name, self[name]
            except SpecError:  # who asks for it by name is told why
                continue

    def register(self, name: str, member: Member) -> None:
        """Add a member for the rest of this process; a known name is replaced."""
        self._members[name] = member

    def module(self, name: str) -> str:
        """Return the module of a member."""
        member: Any = self[name]
        if name in self.shipped:
            return self.shipped[name].partition(":")[0]
        points = [] if name in self._members else self._plugins[name]
        return points[0].module if points else str(member.__module__)

    def distribution(self, name: str) -> Distribution | None:
        """Return the installed package that a member comes from; None for this one."""
        plugins = [] if name in self.shipped else self._plugins.get(name, [])
        return plugins[0].dist if plugins else None

    @cached_property
    def _plugins(self) -> Mapping[str, list[EntryPoint]]:
        plugins: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            plugins.setdefault(point.name, []).append(point)
        return plugins

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
        plugins = self._plugins.get(name, [])
        owners = [*(["tats-core"] if name in self.shipped else []), *map(_package, plugins)]
        if len(owners) > 1:
            raise SpecError(
                f"the {self.what} '{name}' is registered by more than one package: {', '.join(owners)}; "
                "rename or uninstall one of them"
            )
        if plugins:
            return self._load_plugin(name, plugins[0])
        if name not in self.shipped:
            raise SpecError(f"no {self.what} '{name}'{did_you_mean(name, self)}")
        module, _, attribute = self.shipped[name].partition(":")
        member: Member = getattr(importlib.import_module(module), attribute)
        return member

    def _load_plugin(self, name: str, point: EntryPoint) -> Member:
        of = f"the {self.what} '{name}' of the package '{_package(point)}'"
        try:
            member = cast("Member", point.load())
        except Exception as error:  # somebody else's module may raise anything
            why = f"{type(error).__name__}: {error}"
            raise SpecError(f"{of} cannot be imported ({why}); repair or uninstall it") from error
        if not isinstance(member, self.base) and not (
            isinstance(member, type) and issubclass(member, self.base)
        ):
            raise SpecError(f"{of} is '{point.value}', which is no {self.base.__name__}")
        return member


def plugins() -> Iterator[tuple[Distribution, EntryPoint]]:
    """Yield what installed packages register here, with the package."""
    for package in distributions():
        yield from ((package, point) for point in package.entry_points if point.group.startswith("tats."))


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value
