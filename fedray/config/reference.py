"""What is made from the keys' declarations: lists for REST and resume, schema, docs."""

from fedray.config.declaration import Key, keys_of
from fedray.config.settings import FederationConfig


def rest_settings() -> dict[str, Key]:
    """The keys that clients of the REST service may set, by name.

    A `Key` has name, json_type ("integer", "number", "string", "object"...), default,
    choices, is_optional, setting.help, setting.unit, setting.ge / gt / le, and
    `json_schema`: the whole OpenAPI property with type, bounds, enum, default and
    description. Values of json_type "object" come as JSON text in a form.
    """
    keys = keys_of(FederationConfig)
    return {name: key for name, key in keys.items() if key.setting.rest}


def resume_settings() -> frozenset[str]:
    """The keys that may differ when a run is resumed."""
    keys = keys_of(FederationConfig)
    return frozenset(name for name, key in keys.items() if key.setting.resume)
