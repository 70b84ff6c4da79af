"""Code of others, named in a recipe as ``package.module:function``.

There is nothing to register: the recipe names the function, Python imports it. So whoever writes
the recipe decides which installed code runs; read a stranger's recipe before you run it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from prerank.config import Config
from prerank.errors import ConfigError

PLUGIN = "plugin"
"""What a recipe says where it names a function of its own: ``encoder = "plugin"``."""
PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


class PluginConfig(Config):
    """The two keys of a section that takes a function of another package."""

    plugin: str = Field(
        "",
        description="`plugin`: the function, as `package.module:function`; it is imported and run",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="`plugin`: settings handed to the function"
    )

    @model_validator(mode="after")
    def _check_plugin(self) -> Self:
        if self.plugin and not PATH.fullmatch(self.plugin):
            raise ValueError(f"plugin {self.plugin!r}: must be package.module:function")
        return self

    def require_plugin(self, chosen: str, key: str) -> None:
        """Raise ValueError unless a function is named exactly where ``key`` asks for one."""
        if (chosen == PLUGIN) != bool(self.plugin):
            raise ValueError(f'{key} = "plugin" and `plugin` go together')
        if self.options and not self.plugin:
            raise ValueError("`options` are of a plugin, and none is named")


def find(path: str, where: str) -> Callable[..., Any]:
    """Import and return the function that ``path`` names.

    Raises:
        ConfigError: there is no such module or function, or it cannot be called.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name)
    except ImportError as error:
        raise ConfigError(
            "the plug-in cannot be imported",
            where=where,
            must="a function of an installed package, as package.module:function",
            got=f"{path} ({error})",
            hint="install the package into the environment that prerank runs in",
        ) from None
    except AttributeError:
        raise ConfigError(
            "the plug-in's module has no such function", where=where, must=f"in {module}", got=name
        ) from None
    if not callable(found):
        raise ConfigError("the plug-in cannot be called", where=where, got=path)
    function: Callable[..., Any] = found
    return function


def mark(path: str, where: str) -> str:
    """Return a hash of the source of the module that ``path`` names; it enters fingerprints.

    A changed module redoes the stage. What the module imports is not looked at.

    Raises:
        ConfigError: there is no such module.
    """
    module = path.partition(":")[0]
    try:
        spec = find_spec(module)
    except ImportError:
        spec = None
    if spec is None:
        find(path, where)
    file = Path(spec.origin) if spec is not None and spec.origin else None
    source = file.read_bytes() if file is not None and file.is_file() else module.encode()
    return hashlib.sha256(source).hexdigest()[:16]
