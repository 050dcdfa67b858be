"""N follows the load, on the shipped family: shown on counters, not on time."""

import asyncio

from muxserve import Engine
from muxserve.engine.config import EngineConfig
from muxserve.measure.texts import generated_texts

CLIENTS = 64
ROUNDS = 6


async def closed_loop(engine: Engine, texts: list[str]) -> list[int]:
    """Each client sends its next text when the last one is answered; the N of every answer."""
    served: list[int] = []

    async def client(index: int) -> None:
        for text in texts[index::CLIENTS]:
            (answer,) = await engine.classify_async([text])
            served.append(answer.num_instances)

    await asyncio.gather(*(client(index) for index in range(CLIENTS)))
    return served


def test_n_rises_under_a_closed_loop_and_falls_back_to_one_when_it_stops():
    with Engine.from_family("sentiment", EngineConfig(latency_target_ms=10)) as engine:
        texts = generated_texts(engine.family.tokenizer, CLIENTS * ROUNDS, words=(5, 30))
        (alone,) = engine.classify([texts[0]])
        assert alone.num_instances == 1

        served = asyncio.run(closed_loop(engine, texts))
        loaded = engine.stats()
        assert max(served) > 1
        assert loaded.occupancy > 0.9
        assert loaded.batches < len(texts) / 4, "a forward carries many texts"

        for text in texts[:3]:
            (after,) = engine.classify([text + " again"])
            assert after.num_instances == 1
        assert engine.stats().last_num_instances == 1
