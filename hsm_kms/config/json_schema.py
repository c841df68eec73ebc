"""Make the JSON Schema of the configuration file from `schema`, for editors and tools.

The schema accepts every file that `load` accepts. It does not refuse everything that
`load` refuses: duplicate keys, lengths in bytes, durations out of range, PKCS#11 URIs,
and some rules that concern several settings are beyond JSON Schema.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema

from hsm_kms.config.formats import format_duration
from hsm_kms.config.schema import Config, Section

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core.core_schema import CoreSchema, WithDefaultSchema


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the configuration file, in draft 2020-12."""
    made = Config.model_json_schema(schema_generator=_Generator)
    for section in made["$defs"].values():
        # "Define the section `log`: the lowest level" → "The lowest level"
        text = section["description"].rpartition("`: ")[2]
        section["description"] = text[:1].upper() + text[1:]
    whole = {
        "$schema": _Generator.schema_dialect,
        "title": "Configuration of hsm-kms",
        "description": "docs/configuration.md describes every key.",
    }
    return whole | made | whole  # in this order, with these values


class _Generator(GenerateJsonSchema):
    def field_title_should_be_set(self, _: CoreSchema) -> bool:
        """Leave out titles, which repeat the names of the keys."""
        return False

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        """Leave out the default of a section: its settings have their own."""
        if isinstance(schema.get("default"), Section):
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def encode_default(self, dft: Any) -> Any:
        """Write a default as the file has it; every number of seconds is a duration."""
        if isinstance(dft, float):
            return format_duration(dft)
        return super().encode_default(dft)
