"""Variables that a job's children inherit: named by a variable, so that any process of the job can hand them on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_NAMES: Final = "FRAY_INHERITED_VARIABLES"
"""A JSON object with the names of variables and of secrets."""


@dataclass(frozen=True, slots=True)
class Inherited:
    """Variables of a request that its children's requests begin with.

    Attributes:
        variables: By name.
        secrets: Likewise; never shown.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def here(cls) -> Inherited:
        """Those of the job this process belongs to, as they are now."""
        names = json.loads(os.environ.get(_NAMES) or "{}")
        return cls(_present(names.get("variables", ())), _present(names.get("secrets", ())))

    def to_environment(self) -> dict[str, str]:
        """The variable that tells a job which of its variables these are."""
        if not self.variables and not self.secrets:
            return {}
        return {_NAMES: json.dumps({"variables": sorted(self.variables), "secrets": sorted(self.secrets)})}


def _present(names: list[str]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}
