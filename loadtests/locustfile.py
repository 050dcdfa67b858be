"""muxserve's users for plain Locust, with its web UI, headless or distributed.

    locust -f loadtests/locustfile.py OneText --host http://127.0.0.1:8000
    locust -f loadtests/locustfile.py OneText --host ... --headless -u 50 -r 50 -t 1m
    locust -f loadtests/locustfile.py OneText --master --expect-workers 2 --host ...
    locust -f loadtests/locustfile.py OneText --worker

Each user is a Poisson source of ``--rate-per-user`` requests per second (1 by default), so the
number of users is the offered rate. Other users: ManyTexts, MixedLengths, Words, Ready, OipHttp,
OipGrpc, Handle.
"""

from muxserve.loadtest.generator.locustfile import *  # noqa: F403
