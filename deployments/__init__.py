"""Applications for ``serve run deployments.<task>:app``."""
