"""What runs inside Triton's Python: it is copied into every exported model, with the planner.

These modules import numpy, the runtime of the graph, and the engine's planner: nothing else of
muxserve. They run on Python 3.10 and with numpy 1, which Triton's images have.
"""
