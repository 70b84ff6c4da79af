"""Settings of `prerank serve`. Light: imports no web framework."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prerank.config import Config
from prerank.errors import ConfigError


class ServeConfig(Config):
    """Limits and places of a server; the command's options have the same names."""

    precision: Literal["float32", "float16", "int8"] = Field(
        "float32", description="item rows in memory"
    )
    threads: int = Field(
        1, ge=1, description="threads of one scoring call; more pay from some thousand candidates"
    )
    max_candidates: int = Field(20_000, ge=1, description="most candidates of a request")
    max_body: int = Field(2 << 20, ge=1024, description="most bytes of a request's body")
    timeout_s: float = Field(
        1.0, gt=0, description="seconds to receive a body, and to wait for a turn"
    )
    queue: int = Field(8, ge=1, description="requests inside the server at once; more are told 503")
    user_store: str = Field("embedded", description="embedded, or redis://host:port/db")
    store_timeout_s: float = Field(0.05, gt=0, description="seconds to wait for the user store")
    keep_alive_s: int = Field(
        75,
        ge=1,
        description="seconds that an idle connection stays open: longer than the load balancer in "
        "front keeps one, or it would send requests into a closing one",
    )
    shutdown_s: int = Field(10, ge=0, description="seconds that running requests get at the end")


def clean_token(token: str) -> str:
    """Return a bearer token without the blanks and line ends that a file or a shell left around it.

    Raises:
        ConfigError: nothing is left, or what no header can carry: every request would be refused.
    """
    clean = token.strip()
    if (token and not clean) or not (clean.isascii() and clean.isprintable()):
        raise ConfigError(
            "the token cannot be used",
            where="PRERANK_TOKEN",
            must="ASCII letters, digits and signs; unset or empty for no token",
        )
    return clean
