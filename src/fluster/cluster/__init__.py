"""The cluster layer: jobs, workers, endpoints. It knows nothing of actors."""
