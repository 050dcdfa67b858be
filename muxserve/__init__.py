"""muxserve serves MUX-PLMs: N texts in one forward pass, where N follows the load.

``muxserve.Engine`` answers texts in this process; ``muxserve.serving`` puts it behind Ray Serve.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Engine", "Family", "__version__"]

if TYPE_CHECKING:
    from muxserve.engine.engine import Engine
    from muxserve.models.family import Family


def __getattr__(name: str) -> Any:
    """Import the heavy parts (torch) only when asked for, so that the CLI answers at once."""
    if name == "Engine":
        from muxserve.engine.engine import Engine

        return Engine
    if name == "Family":
        from muxserve.models.family import Family

        return Family
    raise AttributeError(f"module 'muxserve' has no attribute {name!r}")
