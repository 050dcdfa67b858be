"""Ports, connections and HTTP/1.1 of one process, with limits on each."""
