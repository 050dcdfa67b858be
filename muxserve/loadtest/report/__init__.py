"""What was measured: figures, one HTML page, comparisons."""
