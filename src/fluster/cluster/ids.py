"""Identifiers: plain strings that type checkers keep apart."""

from typing import NewType

JobId = NewType("JobId", str)
Namespace = NewType("Namespace", str)
WorkerId = NewType("WorkerId", str)
VMId = NewType("VMId", str)
EndpointId = NewType("EndpointId", str)
AttemptUid = NewType("AttemptUid", str)
AllocationId = NewType("AllocationId", str)
