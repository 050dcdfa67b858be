"""A port has one owner: processes of one application share it, nobody else joins them."""

import multiprocessing
import os
import signal
import socket

import pytest

from muxserve.errors import InvalidInput
from muxserve.loadtest.servers.muxserve import free_port
from muxserve.serving.listening.listener import bound_socket
from muxserve.serving.listening.ports import PortClaim, check_port_is_free

HOST, FIELD = "127.0.0.1", "ingress.grpc_port"


def claim(port: int, owner: str) -> PortClaim:
    return PortClaim(HOST, port, owner, FIELD)


def test_processes_of_one_owner_share_a_port():
    port = free_port()
    first, second = claim(port, "a"), claim(port, "a")
    first.release()
    with pytest.raises(InvalidInput, match=r"is a's; choose another with ingress\.grpc_port"):
        claim(port, "b")
    second.release()
    claim(port, "b").release()


def test_a_port_of_another_program_is_refused_though_it_would_share():
    port = free_port()
    with bound_socket(HOST, port) as other:
        other.listen()
        with pytest.raises(InvalidInput, match="cannot listen"):
            claim(port, "a")
        with pytest.raises(InvalidInput, match="choose another with --port"):
            check_port_is_free(HOST, port, "--port")
    claim(port, "a").release()


def hold(port: int, ready: "multiprocessing.synchronize.Event") -> None:
    _kept = claim(port, "killed")
    ready.set()
    signal.pause()


def test_a_process_that_is_killed_leaves_no_claim():
    port = free_port()
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=hold, args=(port, ready))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(InvalidInput):
        claim(port, "b")
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(60)
    claim(port, "b").release()


def test_a_claim_that_is_refused_leaves_the_port_to_its_owner():
    port = free_port()
    owner = claim(port, "a")
    for _ in range(3):
        with pytest.raises(InvalidInput):
            claim(port, "b")
    claim(port, "a").release()
    owner.release()


def test_an_unknown_host_is_one_line():
    with pytest.raises(InvalidInput, match="cannot listen on"):
        check_port_is_free("no-such-host.invalid", 1, "--port")
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        probe.listen()
        with pytest.raises(InvalidInput):
            check_port_is_free(HOST, probe.getsockname()[1], "--port")
