"""Groups of settings that refuse what they do not have; `config` is made of them."""

import dataclasses
import difflib
import typing
from typing import Any

from resnet_jax.errors import UserError


@dataclasses.dataclass
class Section:
    """A group of settings: refuses unknown fields with the nearest valid name, and every change once frozen."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dataclass_fields__:
            raise UserError(unknown_field(type(self).__name__, name, list(self.__dataclass_fields__)))
        if self.__dict__.get("_frozen"):
            raise dataclasses.FrozenInstanceError(f"cannot assign to {name!r}: the config is validated and frozen")
        object.__setattr__(self, name, value)

    def freeze(self) -> None:
        """Makes this section and all sections in it read-only."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Section):
                value.freeze()
        object.__setattr__(self, "_frozen", True)


def unknown_field(where: str, name: str, valid: list[str]) -> str:
    """One line that names the nearest valid field."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(valid)}"
    return f"{where} has no field {name!r}; {hint}"


def flatten(config: Section, prefix: str = "") -> dict[str, Any]:
    """All settings as {'model.name': 'resnet50', ...}."""
    flat = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Section):
            flat |= flatten(value, f"{prefix}{field.name}.")
        else:
            flat[prefix + field.name] = value
    return flat


def from_dict(cls: type, values: dict[str, Any], where: str) -> Any:
    """A section from what `dataclasses.asdict` makes of it, lists for tuples; `where` begins the messages.

    Raises:
      UserError: other fields.
    """
    hints = typing.get_type_hints(cls)
    section = cls()
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected fields, found {values!r}")
    for name, value in values.items():
        if name not in hints:
            raise UserError(unknown_field(where, name, list(hints)) + " (written by another version of resnet_jax?)")
        if isinstance(hints[name], type) and issubclass(hints[name], Section):
            value = from_dict(hints[name], value, f"{where}: {name}")
        setattr(section, name, tuple(value) if isinstance(value, list) else value)
    return section
