"""The base of every stage's configuration: frozen, checked once, no unknown keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Self, get_args

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
            raise from_validation(error, where=where, model=cls) from None


def closest(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean `...`?`` with the name most like ``name``; empty if none is near."""
    near = get_close_matches(name, list(known), n=1)
    return f"did you mean `{near[0]}`?" if near else ""


def from_validation(
    error: ValidationError, *, where: str, model: type[BaseModel] | None = None
) -> ConfigError:
    """Turn pydantic's first complaint into our own form of message; the other keys are named.

    Args:
        where: the file.
        model: what was checked, whose keys a misspelled one is compared with.
    """
    first, *rest = error.errors(include_url=False)
    key = _key(first["loc"])
    unknown = first["type"] == "extra_forbidden"
    others = ", ".join(f"`{_key(one['loc'])}`" for one in rest if one["loc"])
    more = f" (wrong too: {others})" if others else ""
    must = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if not key:  # a rule about several keys at once: its text names them
        return ConfigError(f"the settings do not fit together{more}", where=where, must=must)
    if unknown:
        must = "one of the documented keys"
    elif first["type"] in ("tuple_type", "list_type"):
        must = "a list, such as [1, 2]"
    near = closest(str(first["loc"][-1]), _keys_at(model, first["loc"][:-1])) if unknown else ""
    return ConfigError(
        f"unknown key `{key}`{more}" if unknown else f"bad value for `{key}`{more}",
        where=f"{where} -> {key}" if where else key,
        must=must,
        got=repr(first["input"])[:200],
        hint=near or "`prerank run RECIPE --dry-run` prints every key with its value",
    )


def _key(place: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in place)


def _keys_at(model: type[BaseModel] | None, place: tuple[int | str, ...]) -> Iterable[str]:
    """Return the keys of the section ``place`` of ``model``; none where it is no section."""
    for part in place:
        if model is None:
            break
        field = model.model_fields.get(str(part))
        kinds = (field.annotation, *get_args(field.annotation)) if field else (model,)
        found = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        model = found[0] if found else None
    return model.model_fields if model is not None else ()
