"""The base of every stage's configuration: frozen, checked once, no unknown keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from prerank.errors import ConfigError


class Config(BaseModel):
    """A frozen settings object. Every field has a default; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str = "") -> Self:
        """Check ``values`` and return the config; raise ConfigError naming file and key."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise from_validation(error, where=where) from None


def from_validation(error: ValidationError, *, where: str) -> ConfigError:
    """Turn pydantic's first complaint into our own form of message."""
    first, *rest = error.errors(include_url=False)
    key = ".".join(str(part) for part in first["loc"])
    unknown = first["type"] == "extra_forbidden"
    more = f" (and {len(rest)} more problems)" if rest else ""
    if not key:  # a rule about several keys at once: its text names them
        must = first["msg"].removeprefix("Value error, ")
        return ConfigError(f"the settings do not fit together{more}", where=where, must=must)
    return ConfigError(
        f"unknown key `{key}`{more}" if unknown else f"bad value for `{key}`{more}",
        where=f"{where} -> {key}" if where else key,
        must="one of the documented keys" if unknown else first["msg"],
        got=repr(first["input"])[:200],
        hint="`prerank run RECIPE --dry-run` prints every key with its value",
    )
