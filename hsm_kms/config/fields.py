"""Define the types of value that the configuration file holds.

The operator sees the messages as they are. None of them quotes a value, because the
value may be a misplaced PIN. Beside each check stands what of it JSON Schema can say:
it accepts whatever the check accepts.
"""

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
)
from pydantic_core.core_schema import CoreSchema, no_info_after_validator_function

from hsm_kms.config.formats import KEY_ID, MAX_SOCKET_PATH_BYTES, parse_duration

_MAX_PORT = 65535
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_PORT = re.compile(r"0|[1-9][0-9]{0,4}")
_HOST_AND_PORT = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):(.*)", re.DOTALL)
_MAX_IDS = 64
_HEX_BYTES = re.compile(r"([0-9a-fA-F]{2}){1,255}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _Check:
    """Check text, and add what JSON Schema can say of the check to its type.

    Args:
        check: Returns the text, or raises ValueError with the fault.
        words: What the text must be, for the documentation.
        keywords: For the JSON Schema.

    Attributes:
        words: What the text must be, for the documentation.
    """

    def __init__(
        self, check: Callable[[str], str], words: str, **keywords: object
    ) -> None:
        self._check = check
        self.words = words
        self._keywords = keywords

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), **self._keywords}


def _text(pattern: str, **keywords: object) -> WithJsonSchema:
    """Return the JSON Schema of text that a pattern matches as a whole."""
    return WithJsonSchema({"type": "string", "pattern": f"^({pattern})$", **keywords})


def _list_of(pattern: str) -> WithJsonSchema:
    """Return the JSON Schema of a list of such text."""
    items = {"type": "string", "pattern": f"^({pattern})$"}
    return WithJsonSchema({"type": "array", "items": items, "maxItems": _MAX_IDS})


def _map_of(names: str, values: str, **keywords: object) -> WithJsonSchema:
    """Return the JSON Schema of a mapping of such text to such text."""
    return WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": f"^({names})$"},
            "additionalProperties": {"type": "string", "pattern": f"^({values})$"},
            **keywords,
        }
    )


def _within(most: str, *, zero: bool = False) -> AfterValidator:
    """Return the check for a duration of at most `most`; 0s only if `zero` is True."""
    limit = parse_duration(most)
    least = "" if zero else "more than 0s and "

    def check(seconds: float) -> float:
        if seconds > limit or (seconds == 0 and not zero):
            raise ValueError(f"must be {least}at most {most}")
        return seconds

    return AfterValidator(check)


def _absolute(value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/"):
        raise ValueError("must be an absolute path, beginning with /")
    if _CONTROL.search(value):
        raise ValueError("must not contain control characters")
    return Path(value)


def parse_socket(value: object) -> Path:
    """Return the path of a unix socket that is given as /path or unix:///path.

    Raises:
        ValueError: `value` is anything else, or does not fit into `sun_path`.
    """
    text = value if isinstance(value, str) else ""
    if text.startswith("unix:"):
        text = text.removeprefix("unix:")
        if text.startswith("//") and not text.startswith("///"):
            raise ValueError(
                "has a host part, which Kubernetes would silently drop; "
                "write unix:/// with three slashes, then the path"
            )
        if not text.startswith("///") or re.search("[%?#]", text):
            raise ValueError("must be an absolute path, with or without unix:// before")
        text = text.removeprefix("//")
    path = _absolute(text)
    if text.startswith("/@"):
        raise ValueError("must not be abstract: such a socket has no owner and no mode")
    if len(str(path).encode()) > MAX_SOCKET_PATH_BYTES:
        raise ValueError(f"must be at most {MAX_SOCKET_PATH_BYTES} bytes long")
    if not path.name or text.endswith("/"):
        raise ValueError("must name a file, not a directory")
    return path


def _mode(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch("0?[0-7]{3}", value):
        raise ValueError('must be an octal mode in quotes, such as "0600"')
    bits = int(value, 8)
    if bits not in {0o600, 0o640, 0o620, 0o660}:
        raise ValueError(
            "must be 0600, 0620, 0640 or 0660: anyone who can connect to the socket "
            "can decrypt"
        )
    return value


def _tcp(text: str) -> str:
    parse_tcp(text)
    return text


def parse_tcp(text: str) -> tuple[str, int]:
    """Return host and port of an address such as "127.0.0.1:9462" or "[::1]:9462".

    Raises:
        ValueError: `text` is anything else; a host name is refused too.
    """
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None:
        raise ValueError("must be an address, not a name, and a port: 127.0.0.1:9462")
    host, port = found[1] or found[2], found[3]
    kind = ipaddress.IPv6Address if found[1] else ipaddress.IPv4Address
    try:
        kind(host)
    except ValueError:
        raise ValueError("must begin with an IPv4 address, or [IPv6]") from None
    if not _PORT.fullmatch(port) or int(port) > _MAX_PORT:
        raise ValueError(f"must end with a port, 0 to {_MAX_PORT}")
    return host, int(port)


def sized(most: int, least: int = 1) -> _Check:
    """Return the check for text of `least` to `most` bytes in UTF-8.

    Control characters are refused.
    """

    def check(text: str) -> str:
        # Control characters first: they include what UTF-8 cannot encode.
        if _CONTROL.search(text) or not least <= len(text.encode()) <= most:
            raise ValueError(
                f"must be {least} to {most} bytes of text without control characters"
            )
        return text

    # JSON Schema counts characters, of which there are at most as many as bytes.
    words = f"text, at most {most} bytes"
    return _Check(check, words, maxLength=most, **({"minLength": 1} if least else {}))


def matching(pattern: re.Pattern[str], message: str) -> _Check:
    """Return the check for text that `pattern` matches as a whole.

    Args:
        pattern: The pattern.
        message: The fault that is reported for any other text.
    """

    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(message)
        return text

    return _Check(
        check, message.removeprefix("must be "), pattern=f"^({pattern.pattern})$"
    )


def _environment(env: dict[str, str]) -> dict[str, str]:
    if not all(_ENV_NAME.fullmatch(name) for name in env):
        raise ValueError("must have names of letters, digits and _ only")
    if any(_CONTROL.search(value) for value in env.values()):
        raise ValueError("must not contain control characters")
    return env


def _key_ids(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _MAX_IDS:
        raise ValueError(f"must be a list of at most {_MAX_IDS} key_ids")
    if not all(isinstance(each, str) and KEY_ID.fullmatch(each) for each in value):
        raise ValueError("must contain only key_ids, as `keys list` shows them")
    return tuple(value)


def _aliases(value: dict[str, str]) -> dict[str, str]:
    if len(value) > _MAX_IDS:
        raise ValueError(f"must not contain more than {_MAX_IDS} key_ids")
    if not all(KEY_ID.fullmatch(each) for each in value):
        raise ValueError("must map key_ids, as they are in stored values")
    if not all(_HEX_BYTES.fullmatch(each) for each in value.values()):
        raise ValueError('must map to CKA_IDs in hexadecimal digits, such as "0a01"')
    return {key_id: cka_id.lower() for key_id, cka_id in value.items()}


def _cka_ids(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _MAX_IDS:
        raise ValueError(f"must be a list of at most {_MAX_IDS} CKA_IDs")
    ids = []
    for each in value:
        if not isinstance(each, str) or not _HEX_BYTES.fullmatch(each):
            raise ValueError(
                "must be CKA_IDs as `keys list` shows them, 1 to 255 bytes in hex, "
                "each in quotes"
            )
        ids.append(each.lower())
    if len(set(ids)) != len(ids):
        raise ValueError("must not list a CKA_ID twice")
    return tuple(ids)


_DURATION = _text("[0-9]{1,9}(ms|s|m|h|d)")
_PATH = "/[^\\u0000-\\u001f\\u007f]*"

Duration = Annotated[float, BeforeValidator(parse_duration), _within("1d"), _DURATION]
DurationOrZero = Annotated[
    float, BeforeValidator(parse_duration), _within("1d", zero=True), _DURATION
]
Days = Annotated[float, BeforeValidator(parse_duration), _within("30d"), _DURATION]
DaysOrZero = Annotated[
    float, BeforeValidator(parse_duration), _within("30d", zero=True), _DURATION
]
AbsolutePath = Annotated[Path, BeforeValidator(_absolute), _text(_PATH)]
SocketPath = Annotated[
    Path,
    BeforeValidator(parse_socket),
    _text(f"(unix://)?{_PATH}[^/]", maxLength=MAX_SOCKET_PATH_BYTES + len("unix://")),
]
KeyIds = Annotated[tuple[str, ...], BeforeValidator(_key_ids), _list_of(KEY_ID.pattern)]
Aliases = Annotated[
    dict[str, str],
    AfterValidator(_aliases),
    _map_of(KEY_ID.pattern, _HEX_BYTES.pattern, maxProperties=_MAX_IDS),
]
CkaIds = Annotated[
    tuple[str, ...], BeforeValidator(_cka_ids), _list_of(_HEX_BYTES.pattern)
]
SocketMode = Annotated[str, BeforeValidator(_mode), _text("0?6[0246]0")]
TcpAddress = Annotated[
    str,
    _Check(
        _tcp,
        "address and port",
        pattern=r"^(\[[0-9a-fA-F:.]+\]|[0-9.]+):[0-9]{1,5}$",
    ),
]
# The environment may carry a password for the module, so its repr leaves it out.
Environment = Annotated[
    dict[str, str],
    AfterValidator(_environment),
    Field(repr=False),
    _map_of(_ENV_NAME.pattern, "[^\\u0000-\\u001f\\u007f]*"),
]
