"""Why an attempt cannot be started."""

from __future__ import annotations


class BuildFailed(Exception):
    """The attempt cannot be started.

    Attributes:
        fluster_fault: The user could not have prevented it, and another try may do better.
    """

    def __init__(self, message: str, *, fluster_fault: bool = False) -> None:
        super().__init__(message)
        self.fluster_fault = fluster_fault
