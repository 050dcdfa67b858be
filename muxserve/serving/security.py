"""Settings of who may ask, from where, and who may see which page."""

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

#: Who may see a page: everyone who reaches the port, callers with a key, or nobody.
Access = Literal["open", "key", "off"]
#: A header in which proxies say whom they ask for.
ProxyHeader = Literal["x-forwarded-for", "forwarded"]

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def _list(given: Any) -> Any:
    """A command line has commas where YAML has a list."""
    if isinstance(given, str):
        return [part.strip() for part in given.split(",") if part.strip()]
    return given


def _origins(given: tuple[str, ...]) -> tuple[str, ...]:
    for one in given:
        if one == "*" and len(given) > 1:
            raise ValueError("'*' is every origin: give it alone")
        if one != "*" and not _ORIGIN.fullmatch(one):
            raise ValueError(
                f"expected an origin as browsers send it, such as https://app.example.com, "
                f"got {one!r}"
            )
    return given


def _networks(given: tuple[str, ...]) -> tuple[str, ...]:
    for one in given:
        try:
            ipaddress.ip_network(one)
        except ValueError as error:
            raise ValueError(
                f"expected an address or a network such as 10.0.0.0/8: {error}"
            ) from None
    return given


class PagesConfig(BaseModel):
    """Who may see what is not an answer."""

    model_config = ConfigDict(extra="forbid")

    stats: Access = Field("open", description="/stats: open, for a key, or off (404).")
    metrics: Access = Field("open", description="/metrics, likewise.")
    docs: Access = Field("open", description="/docs and /openapi.json, likewise.")

    def of(self, page: str) -> Access:
        """Who may see a page, by its name."""
        access: Access = getattr(self, page)
        return access


class SecurityConfig(BaseModel):
    """Who may ask."""

    model_config = ConfigDict(extra="forbid")

    keys_file: str | None = Field(
        None,
        min_length=1,
        description="YAML or JSON with API keys, such as a mounted secret; without, whoever "
        "reaches a port may ask. Read again when it changes.",
    )
    pages: PagesConfig = Field(default_factory=PagesConfig, description="Beside answers.")
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_list), AfterValidator(_origins)] = (
        Field(
            (),
            description="Origins whose pages may ask from a browser, such as "
            "https://app.example.com, or '*'; by default none.",
        )
    )
    trusted_proxies: Annotated[
        tuple[str, ...], BeforeValidator(_list), AfterValidator(_networks)
    ] = Field(
        (),
        description="Addresses and networks of proxies that tell the caller's address in "
        "proxy_header; nobody else is believed.",
    )
    proxy_header: ProxyHeader = Field(
        "x-forwarded-for",
        description="The header that the trusted proxies write: x-forwarded-for, or forwarded "
        "(RFC 7239). The other one is passed over: clients may have written it.",
    )

    @model_validator(mode="before")
    @classmethod
    def _off_and_on_of_yaml(cls, given: Any) -> Any:
        """YAML 1.1 reads an unquoted off as false."""
        pages = given.get("pages") if isinstance(given, Mapping) else None
        if not isinstance(pages, Mapping):
            return given
        told = {name: "off" if value is False else value for name, value in pages.items()}
        return {**given, "pages": told}

    @model_validator(mode="after")
    def _keys_exist_for_pages(self) -> "SecurityConfig":
        for name in PagesConfig.model_fields:
            if self.pages.of(name) == "key" and self.keys_file is None:
                raise ValueError(
                    f"pages.{name} 'key' needs keys_file: set security.keys_file, or take 'off'"
                )
        return self
