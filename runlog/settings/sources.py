"""
Decide which of several layers of raw values gives a setting its value.

A `Layer` is one place that settings come from (arguments, environment, a file,
a profile), read once by `runlog.settings.files` and keyed by the setting's name
as it stands in the environment. `LayerSource` hands the chosen values to
pydantic-settings, which validates them (`runlog.settings.model`). The stock
environment source is not used because it cannot say where a value came from,
and because its nested names lose ``PREFECT_LOGGING_TO_API_BATCH_SIZE``.

No I/O.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic.fields import FieldInfo


class _Unset:
    """The type of `UNSET`."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = _Unset()
"""In a layer: the setting has its default, whatever lower layers say."""


@dataclass(frozen=True, slots=True)
class Layer:
    """
    Raw values from one place.

    Args:
        origin: What `runlog.settings.origin_of` says: ``"environment"``, ``"profile 'dev'"``, ...
        values: By the name of the setting or an alias of it, upper-cased; text,
            or whatever TOML or the caller gave. The text of a secret is in here as well.
        file: Path of the file for messages; `None` if the place is no file.
        of_profile: Whether the layer follows from the choice of a profile.
    """

    origin: str
    values: Mapping[str, Any] = field(repr=False)
    file: str | None = None
    of_profile: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A raw value, the name under which it was found, and the layer."""

    value: Any = field(repr=False)
    name: str
    layer: Layer


def resolve(names: Sequence[str], layers: Iterable[Layer]) -> Found | None:
    """
    Return the first value that a layer has for a setting, `None` if none has one.

    Text is stripped, since a key that comes from a file often ends with a
    newline, and empty text counts as not set.

    Args:
        names: The name of the setting, then its aliases; within a layer the first wins.
        layers: The strongest first.
    """
    for layer in layers:
        for name in names:
            value = layer.values.get(name)
            if isinstance(value, str):
                value = value.strip()
            if value is not None and value != "":
                return Found(value, name, layer)
    return None


layers_of_load: ContextVar[tuple[Layer, ...]] = ContextVar("layers_of_load", default=())
"""What is being built from; empty outside of a load, when there are arguments and defaults only."""


def names_of(block: type[BaseSettings], field_name: str) -> tuple[str, ...]:
    """Return the name of a setting in the environment, then its aliases."""
    extra = block.model_fields[field_name].json_schema_extra
    assert isinstance(extra, dict)
    name = extra["name"] or f"{block.model_config['env_prefix']}{field_name}".upper()
    aliases = extra["aliases"]
    assert isinstance(name, str)
    assert isinstance(aliases, list)
    return (name, *map(str, aliases))


class LayerSource(PydanticBaseSettingsSource):
    """Give one block of settings its values from the layers of the load that is under way."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return value, key and whether the value is still encoded, as pydantic-settings wants it."""
        if field.json_schema_extra is None:  # a block: it has a source of its own
            return {}, field_name, False
        found = resolve(names_of(self.settings_cls, field_name), layers_of_load.get())
        if found is None or found.value is UNSET:
            return None, field_name, False
        return found.value, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return what is set, by field."""
        values = {
            name: self.get_field_value(field, name)[0]
            for name, field in self.settings_cls.model_fields.items()
        }
        return {name: value for name, value in values.items() if value is not None}
