"""Endpoints by name: plain synchronous data, without locks, clocks or randomness of its own."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from fluster.cluster.addresses import check_endpoint_address
from fluster.cluster.ids import EndpointId, JobId, Namespace
from fluster.cluster.observed import Endpoint
from fluster.cluster.validation import check_metadata, check_name
from fluster.errors import AlreadyExists

_K = TypeVar("_K")


def new_endpoint_id() -> EndpointId:
    """An id nobody else makes."""
    return EndpointId(f"ep-{secrets.token_hex(8)}")


class EndpointRegistry:
    """An index of endpoints: by id, by namespace and name, by owner.

    Several endpoints may share a name; lookups give them oldest first. The owner is the job, unless `add` is told a
    narrower one (an attempt), so that what owned an endpoint can take it along when it ends.

    Args:
        new_id: Makes the ids of `register`.
    """

    def __init__(self, new_id: Callable[[], EndpointId] = new_endpoint_id) -> None:
        self._new_id = new_id
        # Dicts as ordered sets: insertion order is age, and removal stays cheap.
        self._by_id: dict[EndpointId, tuple[Endpoint, str]] = {}
        self._by_name: dict[tuple[Namespace, str], dict[EndpointId, None]] = {}
        self._by_job: dict[JobId, dict[EndpointId, None]] = {}
        self._by_owner: dict[str, dict[EndpointId, None]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Endpoint]:
        """All endpoints, oldest first."""
        return iter([endpoint for endpoint, _ in self._by_id.values()])

    def __contains__(self, endpoint_id: object) -> bool:
        return endpoint_id in self._by_id

    def register(
        self,
        name: str,
        address: str,
        job_id: JobId,
        namespace: Namespace,
        metadata: Mapping[str, str] | None = None,
        *,
        endpoint_id: EndpointId | None = None,
        access_key: str | None = None,
        owner: str | None = None,
    ) -> Endpoint:
        """Adds an endpoint under a name.

        Raises:
            ValueError: Name, address or metadata break a rule.
            AlreadyExists: The id is taken.
        """
        check_name(name, "an endpoint's name")
        check_endpoint_address(address)
        endpoint = Endpoint(
            endpoint_id=endpoint_id if endpoint_id is not None else self._new_id(),
            name=name,
            address=address,
            job_id=job_id,
            namespace=namespace,
            metadata=check_metadata(metadata or {}),
            access_key=access_key,
        )
        self.add(endpoint, owner=owner)
        return endpoint

    def add(self, endpoint: Endpoint, *, owner: str | None = None) -> None:
        """Adds an endpoint that was checked before; ``owner`` defaults to its job.

        Raises:
            AlreadyExists: The id is taken.
        """
        key = endpoint.endpoint_id
        if key in self._by_id:
            raise AlreadyExists(f"endpoint {key!r} is registered already")
        holder = owner if owner is not None else endpoint.job_id
        self._by_id[key] = (endpoint, holder)
        self._by_name.setdefault((endpoint.namespace, endpoint.name), {})[key] = None
        self._by_job.setdefault(endpoint.job_id, {})[key] = None
        self._by_owner.setdefault(holder, {})[key] = None

    def get(self, endpoint_id: EndpointId) -> Endpoint | None:
        """The endpoint of that id."""
        found = self._by_id.get(endpoint_id)
        return found[0] if found else None

    def owner(self, endpoint_id: EndpointId) -> str | None:
        """Who owns it; `None` when there is no such endpoint."""
        found = self._by_id.get(endpoint_id)
        return found[1] if found else None

    def unregister(self, endpoint_id: EndpointId) -> Endpoint | None:
        """Removes an endpoint and returns it; `None`, and no harm, when there is none."""
        found = self._by_id.pop(endpoint_id, None)
        if found is None:
            return None
        endpoint, holder = found
        _drop(self._by_name, (endpoint.namespace, endpoint.name), endpoint_id)
        _drop(self._by_job, endpoint.job_id, endpoint_id)
        _drop(self._by_owner, holder, endpoint_id)
        return endpoint

    def lookup(self, name: str, namespace: Namespace) -> Endpoint | None:
        """The oldest endpoint of that name."""
        return next(iter(self.lookup_all(name, namespace)), None)

    def lookup_all(self, name: str, namespace: Namespace) -> list[Endpoint]:
        """All endpoints of that name, oldest first."""
        return [self._by_id[key][0] for key in self._by_name.get((namespace, name), ())]

    def list(self, prefix: str = "", namespace: Namespace | None = None) -> list[Endpoint]:
        """Endpoints whose name begins with ``prefix``, oldest first; of all namespaces when `None`."""
        return [
            endpoint
            for endpoint in self
            if endpoint.name.startswith(prefix) and (namespace is None or endpoint.namespace == namespace)
        ]

    def cleanup_job(self, job_id: JobId) -> tuple[Endpoint, ...]:
        """Removes all endpoints of a job and returns them; repeating is harmless."""
        return self._remove_all(self._by_job.get(job_id, {}))

    def cleanup_owner(self, owner: str) -> tuple[Endpoint, ...]:
        """Removes all endpoints of an owner and returns them; repeating is harmless."""
        return self._remove_all(self._by_owner.get(owner, {}))

    def _remove_all(self, keys: Mapping[EndpointId, None]) -> tuple[Endpoint, ...]:
        removed = [self.unregister(key) for key in tuple(keys)]
        return tuple(endpoint for endpoint in removed if endpoint is not None)


def _drop(index: dict[_K, dict[EndpointId, None]], key: _K, endpoint_id: EndpointId) -> None:
    index[key].pop(endpoint_id)
    if not index[key]:
        del index[key]
