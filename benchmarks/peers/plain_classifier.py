"""What the server scripts beside this file share: the plain model, and their options.

Only torch and transformers are imported, because each script runs in its server's own environment.
"""

import argparse
from collections.abc import Sequence

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class PlainClassifier:
    """A Hugging Face classifier as its users run it: one padded batch, one forward.

    Args:
        folder: of ``save_pretrained``, with tokenizer files.
        threads: of torch in this process.
        dtype: of weights and activations, ``float32`` or ``bfloat16``.
    """

    def __init__(self, folder: str, *, threads: int, dtype: str) -> None:
        torch.set_num_threads(threads)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        ).eval()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """Probabilities of each text's labels, padded to the longest text of the batch."""
        rows = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return self.model(**rows).logits.float().softmax(-1).tolist()

    def warm_up(self, batch_size: int) -> None:
        """Run batches of every length from short to long, so that no request meets a first time."""
        for words in (4, 16, 64, 256):
            for size in (1, batch_size):
                self(["a " * words] * size)


def options(*, batch_size: int, batch_wait_ms: float) -> argparse.Namespace:
    """The command line that all scripts understand; the arguments are the script's defaults."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="folder of the model and its tokenizer")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in all workers together")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with the model")
    parser.add_argument("--batch-size", type=int, default=batch_size, help="most texts a forward")
    parser.add_argument(
        "--batch-wait-ms", type=float, default=batch_wait_ms, help="longest wait for a full batch"
    )
    return parser.parse_args()
