"""A `fray.client.Client` on a Fluster cluster; needs `marin-fray`."""

from fluster.integrations.fray.client import FlusterClient

__all__ = ["FlusterClient"]
