"""Measuring: texts, families for timing, the offline loop, HTTP clients, the machine."""
