"""Ray Serve: an ingress that speaks HTTP and replicas that hold an engine each."""
