"""What a training run prints on stderr: its own lines above a bar, and errors of libraries."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logged_plainly() -> Iterator[None]:
    """Log muxserve's lines with the time, above a bar; of libraries, only their errors."""
    from tqdm.contrib.logging import logging_redirect_tqdm
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    for library in ("httpx", "huggingface_hub", "accelerate", "datasets"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with logging_redirect_tqdm():
        yield
