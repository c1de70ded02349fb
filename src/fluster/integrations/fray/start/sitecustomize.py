"""Runs at the start of each Python program that a job of fray's starts: fray, if it is imported, finds Fluster.

Imports next to nothing, and leaves everything else as it would be: an environment's own `sitecustomize` runs too.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

_LOOKED_FOR = "fray.current_client"


class _Loader(importlib.abc.Loader):
    """Loads the module as its own loader does, and then sets the default."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        from fluster.integrations.fray.client import FlusterClient
        from fluster.integrations.fray.default import set_default

        set_default(FlusterClient())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds that one module, once."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != _LOOKED_FOR:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def _give_way() -> None:
    """To the `sitecustomize` that would have run without this one."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != here]
    if __name__ == "sitecustomize":
        mine = sys.modules.pop(__name__)
        try:
            importlib.import_module("sitecustomize")
        except ModuleNotFoundError as error:
            if error.name != "sitecustomize":
                raise
            sys.modules[__name__] = mine


if os.environ.get("FLUSTER_JOB_ID"):
    sys.meta_path.insert(0, _Finder())
_give_way()
