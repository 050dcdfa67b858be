"""A Ray cluster on this machine in the shape of a rendered RayService: ``python ray_nodes.py``.

Reads ``{"workers": [{"num_cpus": 4}, ...]}`` from its first argument: a head without CPUs, and a
node for each worker. Says where the dashboard is, in one line of JSON, and ends when stdin does.
A process of its own, because Ray Serve reads its environment once.
"""

import json
import sys
import tempfile

from ray.cluster_utils import Cluster

from muxserve.loadtest.servers.muxserve import free_port

#: Of this machine alone. Not 127.0.0.1, which Ray replaces by the outer address.
LOOPBACK = "127.0.0.2"
NODE = {"object_store_memory": 80 * 2**20, "node_ip_address": LOOPBACK}


def main(shape: dict) -> None:
    with tempfile.TemporaryDirectory(prefix="mux", ignore_cleanup_errors=True) as folder:
        dashboard = {
            "include_dashboard": True,
            "dashboard_host": LOOPBACK,
            "dashboard_port": free_port(),
            "dashboard_agent_listen_port": free_port(),
        }
        cluster = Cluster(
            initialize_head=True,
            head_node_args={**NODE, **dashboard, "num_cpus": 0, "temp_dir": folder},
        )
        try:
            for worker in shape["workers"]:
                agent = {"dashboard_agent_listen_port": free_port()}
                cluster.add_node(**NODE, **agent, include_dashboard=False, **worker)
            url = f"http://{LOOPBACK}:{dashboard['dashboard_port']}"
            sys.stdout.write(f"{json.dumps({'dashboard': url})}\n")
            sys.stdout.flush()
            sys.stdin.read()
        finally:
            cluster.shutdown()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
