"""``python -m muxserve`` is the ``muxserve`` command."""

from muxserve.cli import main

if __name__ == "__main__":
    main()
