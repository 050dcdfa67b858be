"""Texts and labels in, batches of token ids out."""
