"""Measuring one process: the machine, texts and families for timing, the offline loop."""
