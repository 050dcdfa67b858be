"""Bytes of a request in, bytes of its answer out: HTTP, and the Open Inference Protocol."""
