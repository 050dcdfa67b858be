"""Families on NVIDIA Triton: export to a model repository, and a client for exported models."""
