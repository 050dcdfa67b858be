"""Ray: the deployments, how they are built, placed and scaled, and their metrics."""
