"""``muxserve serve``: a family over HTTP with Ray Serve, until Ctrl-C."""

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from muxserve.cli.app import FamilyOption, app, told_in_one_line
from muxserve.errors import InvalidInput
from muxserve.serving.listening.ports import check_port_is_free, free_block

if TYPE_CHECKING:
    from muxserve.serving.security import SecurityConfig


class Proxy(StrEnum):
    """What receives HTTP."""

    PYTHON = "python"
    HAPROXY = "haproxy"
    NONE = "none"


#: Ray's settings for each proxy, whatever the environment says: Ray would open ports beside ours
#: (direct ingress), which other servers may share without knowing.
RAY_SETTINGS: dict[Proxy, dict[str, str]] = {
    Proxy.PYTHON: {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"},
    Proxy.HAPROXY: {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Nothing stands before this HAProxy that has to notice first, so it may end at once.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    },
    Proxy.NONE: {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    },
}

#: Statistics and metrics of Ray's HAProxy, on every interface.
_HAPROXY_PORTS = (8404, 9101)
#: Ports behind HAProxy: one for each replica of this machine, and one for Ray's own proxy.
_BEHIND_HAPROXY = 100


@app.command()
@told_in_one_line()
def serve(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Any setting of the app, as in `serve run`."),
    ] = None,
    family: FamilyOption = "sentiment",
    port: Annotated[int, typer.Option(min=1, max=65535, help="HTTP port.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    proxy: Annotated[
        Proxy,
        typer.Option(
            help="What stands before the ingress. none: nothing, the quickest. python and haproxy: "
            "Ray Serve's own; the statistics of haproxy on ports 8404 and 9101 are open to other "
            "machines, whatever --host says."
        ),
    ] = Proxy.NONE,
) -> None:
    """Serve a family over HTTP with Ray Serve, until Ctrl-C or SIGTERM.

    \b
    Examples:
      muxserve serve
      muxserve serve --family ./my-family --port 9000
      muxserve serve --host 0.0.0.0 engine.latency_target_ms=20
      muxserve serve arrangement=together replicas.num_cpus=2
    """
    # Ray reads these once, when it is imported.
    os.environ.update(RAY_SETTINGS[proxy])
    if proxy is Proxy.HAPROXY:
        os.environ.update(_ports_behind_haproxy())
    # Ray's proxies would believe any X-Forwarded-For of this machine; see security.trusted_proxies.
    os.environ["FORWARDED_ALLOW_IPS"] = ""
    # Ray's own default for a Ray that it starts; set explicitly, it brings no warning.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    from muxserve.serving.config import ServeConfig

    check_port_is_free(host, port, "--port")
    values = dict(_key_value(setting) for setting in settings or [])
    if proxy is Proxy.NONE:
        values = {"ingress.direct_host": host, "ingress.direct_port": str(port), **values}
    config = ServeConfig.model_validate({"family": family, **values})
    if proxy is Proxy.HAPROXY:
        # Two of these would share their replicas' ports too, and answer for one another.
        for of_haproxy in _HAPROXY_PORTS:
            check_port_is_free("0.0.0.0", of_haproxy, "another --proxy")
    listening = config.ingress
    if listening.direct_port is not None and listening.direct_port != port:
        check_port_is_free(listening.direct_host, listening.direct_port, "ingress.direct_port")
    if listening.grpc_port is not None:
        check_port_is_free(listening.direct_host, listening.grpc_port, "ingress.grpc_port")
    try:
        from muxserve.serving.app import build_app
        from muxserve.serving.ray.local import serve_until_stopped
        from muxserve.serving.ray.placement import needs
    except ModuleNotFoundError as error:
        raise InvalidInput(f"serving needs Ray ({error}): pip install 'ray[serve]'") from None

    built = build_app(config)
    typer.echo(f"starting {family} on http://{host}:{port} ...", err=True)
    serve_until_stopped(
        built,
        None if proxy is Proxy.NONE else (host, port),
        needs(config),
        lambda: typer.echo(_how_to_ask(host, port, config.security)),
    )
    typer.echo("stopped", err=True)


def _ports_behind_haproxy() -> dict[str, str]:
    """Ports that only this server uses.

    Ray's own choice is the same for all of its clusters on a machine, and the kernel would spread
    HAProxy's calls over the replicas of all of them.
    """
    first = free_block(_BEHIND_HAPROXY)
    return {
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first + 1),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + _BEHIND_HAPROXY - 1),
    }


def _key_value(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not key or not equals:
        raise InvalidInput(f"settings are given as key=value, got {setting!r}")
    return key, value


def _how_to_ask(host: str, port: int, security: "SecurityConfig") -> str:
    shown = "127.0.0.1" if host == "0.0.0.0" else host
    url = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
    docs = "" if security.pages.docs == "off" else f"docs: {url}/docs; "
    key = "" if security.keys_file is None else ' -H "authorization: Bearer $KEY"'
    return (
        f"ready on {url} ({docs}Ctrl-C stops)\n"
        f"  curl -s {url}/predict -H 'content-type: application/json'{key} \\\n"
        f'    -d \'{{"inputs": "A moving, beautifully shot film."}}\''
    )
