"""The code that runs in Triton's Python; it is copied into every exported model with the planner.

These modules import only numpy, the graph's runtime and the engine's planner. They run on Python
3.10 with numpy 1, which Triton's images have.
"""
