"""An exception of another process: as texts always, as itself if it survives the way."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass

from fluster import pickler
from fluster.errors import RemoteError


@dataclass(frozen=True, slots=True)
class Thrown:
    """An exception as it travels.

    Attributes:
        type_name: As a traceback names it.
        message: Its text.
        traceback: Formatted where it happened; empty if unknown.
        pickled: Itself; empty if it does not survive pickling.
    """

    type_name: str
    message: str
    traceback: str
    pickled: bytes

    @classmethod
    def of(cls, error: BaseException) -> Thrown:
        """Whatever its class does."""
        return cls(
            type_name=_clean(type_name(type(error))),
            message=_clean(_text(error)),
            traceback=_clean(_traceback(error)),
            pickled=_pickled(error),
        )

    def rebuild(self, *, system_exit: bool = False) -> BaseException:
        """The exception with the remote traceback as a note; a `RemoteError` that tells of it if it cannot be rebuilt.

        A KeyboardInterrupt or the like, raised here, would mean this process, so that it is told of, too.

        Args:
            system_exit: A `SystemExit` is given as itself.
        """
        error = self._loaded()
        if not isinstance(error, Exception) and not (system_exit and isinstance(error, SystemExit)):
            text = f"{self.type_name}: {self.message}" if self.message else self.type_name
            error = RemoteError(text, type_name=self.type_name, remote_traceback=self.traceback)
        if self.traceback:
            try:
                error.add_note(f"Remote traceback:\n{self.traceback.rstrip()}")
            except Exception:  # its class lets nobody set an attribute
                pass
        return error

    def _loaded(self) -> BaseException | None:
        try:
            error = pickle.loads(self.pickled) if self.pickled else None
        except Exception:  # whatever its class does when it is rebuilt
            return None
        return error if isinstance(error, BaseException) else None


def type_name(kind: type) -> str:
    """As a traceback names it."""
    module = kind.__module__
    return kind.__qualname__ if module in ("builtins", "__main__") else f"{module}.{kind.__qualname__}"


def _pickled(error: BaseException) -> bytes:
    try:
        pickled = pickler.dumps(error)
        # An exception whose constructor takes other arguments than it passes on can be pickled but not loaded.
        pickle.loads(pickled)
    except BaseException:  # whatever its methods raise
        return b""
    return pickled


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as failure:
        return f"<its __str__ raised {type(failure).__name__}>"


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # of an exception whose attributes are not what they should be
        return ""


def _clean(text: str) -> str:
    """Without lone surrogates, which no message may carry."""
    return text.encode("utf-8", "backslashreplace").decode()
