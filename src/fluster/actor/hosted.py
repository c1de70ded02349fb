"""An actor as its server holds it: which of its attributes may be called, and how."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Self

from fluster.actor.types import ActorContext, ActorId

if TYPE_CHECKING:
    from fluster.actor.lanes import Lane


class MethodKind(Enum):
    """How a method is run."""

    PLAIN = 0
    ASYNC = 1
    GENERATOR = 2
    ASYNC_GENERATOR = 3


@dataclass(frozen=True, slots=True)
class Method:
    """What is known of a method once it was looked at.

    Attributes:
        name: Of the attribute.
        kind: How it is run.
        takes_context: Its first parameter is the context.
        streams: It gives items.
        in_loop: It runs in the event loop.
    """

    name: str
    kind: MethodKind
    takes_context: bool
    streams: bool
    in_loop: bool

    @classmethod
    def of(cls, name: str, function: Callable[..., Any]) -> Self:
        """What is to be known of a function."""
        kind = _kind_of(function)
        streams = kind in (MethodKind.GENERATOR, MethodKind.ASYNC_GENERATOR)
        in_loop = kind in (MethodKind.ASYNC, MethodKind.ASYNC_GENERATOR)
        return cls(name, kind, _takes_context(function), streams, in_loop)


@dataclass(slots=True, eq=False)
class Hosted:
    """One registered actor.

    Attributes:
        actor: The user's object.
        name: What it is registered under.
        lane: Where its synchronous methods run.
        context: What they may use.
        actor_id: Of its registration, once it has one.
        gone: It was unregistered.
    """

    actor: object
    name: str
    lane: Lane
    context: ActorContext
    actor_id: ActorId = ActorId("")
    gone: bool = False
    _methods: dict[str, Method] = field(default_factory=dict)

    def method(self, name: str) -> Method:
        """The method of this name.

        Raises:
            AttributeError: It may not be called; marked as `refused`.
        """
        known = self._methods.get(name)
        if known is None:
            known = self._methods[name] = self._look_at(name)
        return known

    def _look_at(self, name: str) -> Method:
        kind = type(self.actor).__qualname__
        check_method_name(name)
        # Without running code of the actor: a property is no method, whatever it would give.
        static = inspect.getattr_static(self.actor, name, None)
        if isinstance(static, property):
            raise refused(f"{kind}.{name} is a property, not a method")
        try:
            function = getattr(self.actor, name)
        except AttributeError:
            raise refused(f"actor {self.name!r}, a {kind}, has no method {name!r}") from None
        if not callable(function):
            raise refused(f"{kind}.{name} is not callable")
        return Method.of(name, function)


def check_method_name(name: str) -> None:
    """Refuses what is not meant for others.

    Raises:
        AttributeError: It begins with an underscore, or is no name.
    """
    if name.startswith("_"):
        raise refused(f"{name!r} begins with an underscore: such attributes of actors are not for callers")
    if not name.isidentifier():
        raise refused(f"{name[:80]!r} is not the name of a method")


def refused(message: str) -> AttributeError:
    """An error that is the call's, not the method's."""
    error = AttributeError(message)
    error.refused = True  # type: ignore[attr-defined]
    return error


def _kind_of(function: Callable[..., Any]) -> MethodKind:
    # An object with __call__ is what its __call__ is.
    if not (inspect.isroutine(function) or isinstance(function, type)):
        function = type(function).__call__
    if inspect.iscoroutinefunction(function):
        return MethodKind.ASYNC
    if inspect.isasyncgenfunction(function):
        return MethodKind.ASYNC_GENERATOR
    if inspect.isgeneratorfunction(function):
        return MethodKind.GENERATOR
    return MethodKind.PLAIN


def _takes_context(function: Callable[..., Any]) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # of a builtin
        return False
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        return False
    annotation = parameters[0].annotation
    return (
        parameters[0].name == "ctx"
        or annotation is ActorContext
        or (isinstance(annotation, str) and annotation.rpartition(".")[2].strip("'\"") == ActorContext.__name__)
    )
