"""Whether every peer installs, starts, classifies and answers many clients at once.

    python benchmarks/peers/check.py                       # a tiny model
    python benchmarks/peers/check.py --hidden 256 --layers 4 --seconds 5
    python benchmarks/peers/check.py --peer mosec

Environments are made below .cache/peers once. The rates are of a smoke run: too short, and too
much else on the machine, to compare servers by.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from muxserve.bench.closed_loop import closed_loop
from muxserve.engine.config import available_cores
from muxserve.loadtest.servers.peers import PEERS, Peer, PeerFailed, environment, running
from muxserve.loadtest.servers.plain_model import write_plain_model
from muxserve.loadtest.servers.process import free_port
from muxserve.measure.texts import generated_texts
from muxserve.models.family import resolve

TEXTS = ["A moving film.", "Dull, and far too long " * 8, "x"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", choices=list(PEERS), action="append", help="default: all")
    parser.add_argument("--hidden", type=int, default=64, help="hidden size, 32 for each head")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load on each peer")
    parser.add_argument("--environments", type=Path, default=Path(".cache/peers"))
    options = parser.parse_args()
    # In the background of a script Ctrl-C is ignored, and the servers would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    tokenizer_file = resolve("sentiment") / "tokenizer.json"
    vocab = Tokenizer.from_file(str(tokenizer_file)).get_vocab_size()
    rows = ["| peer | three texts | texts/s | p50 ms | server CPU ms/text | errors |"]
    rows += ["| --- | --- | ---: | ---: | ---: | ---: |"]
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        model = write_plain_model(
            Path(folder),
            tokenizer_file,
            hidden=options.hidden,
            layers=options.layers,
            heads=options.hidden // 32,
            intermediate=4 * options.hidden,
            vocab=vocab,
            max_length=128,
        )
        for name in options.peer or PEERS:
            print(f"... {name}", file=sys.stderr, flush=True)
            try:
                rows.append(check(PEERS[name], model, options))
            except PeerFailed as error:
                print(error, file=sys.stderr)
                rows.append(f"| {name} | failed | | | | |")
                failed = True
    print("\n".join(rows))
    sys.exit(failed)


def check(peer: Peer, model: Path, options: argparse.Namespace) -> str:
    """One row of the table."""
    python = environment(peer, options.environments.resolve())
    texts = generated_texts(Tokenizer.from_file(str(model / "tokenizer.json")), 2000, seed=1)
    with running(
        peer, python, model, port=free_port(), threads=options.threads, dtype=options.dtype
    ) as server:
        scores = ", ".join(f"{server.classify(text)[1]:.4f}" for text in TEXTS)
        before = server.cpu_seconds()
        result = asyncio.run(
            closed_loop(
                server.host,
                server.port,
                texts,
                clients=options.clients,
                warm_up_s=1.0,
                seconds=options.seconds,
                path=peer.path,
                body=peer.body,
            )
        )
        spent = server.cpu_seconds() - before
    # The warm-up's texts are not counted, so the processor time is scaled to the measured part.
    share = options.seconds / (options.seconds + 1.0)
    answered = result.statuses[200]
    errors = result.statuses.total() - answered
    return (
        f"| {peer.name} | {scores} | {result.texts_per_s:.0f} | {result.quantile_ms(0.5):.0f} "
        f"| {1000 * spent * share / max(1, answered):.2f} | {errors} |"
    )


if __name__ == "__main__":
    main()
