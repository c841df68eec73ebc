"""The shape of the configuration file: every key, its type, bounds and default.

The sentences of the validators below reach the operator as they are. None of
them quotes a value: a PIN may stand where it should not.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

MAX_SOCKET_PATH_BYTES = 107
"""`sun_path` is 108 bytes with its closing NUL."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_LOGIN = re.compile(r"user|none|crypto-user|so|0x[0-9a-fA-F]{1,8}")
_KEY_ID = re.compile(r"[a-z2-7]{26}(\.[a-z0-9]{1,16})?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def parse_duration(value: object) -> float:
    """Turn "500ms", "2s", "5m", "24h" or "7d" into seconds.

    Raises:
        ValueError: If it is anything else, a bare number included.
    """
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("must be a whole number with its unit: 500ms, 2s, 5m, 24h, 7d")
    return int(found[1]) * _UNITS[found[2]]


def format_duration(seconds: float) -> str:
    """Write seconds the way the file does, in the largest unit that is exact."""
    millis = round(seconds * 1000)
    for unit, size in reversed(_UNITS.items()):
        count, rest = divmod(millis, round(size * 1000))
        if rest == 0 and (count > 0 or unit == "s"):
            return f"{count}{unit}"
    return f"{millis}ms"


def _positive(seconds: float) -> float:
    if not 0 < seconds <= _UNITS["d"]:
        raise ValueError("must be more than 0s and at most 1d")
    return seconds


def _absolute(value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/"):
        raise ValueError("must be an absolute path, beginning with /")
    if _CONTROL.search(value):
        raise ValueError("must not hold control characters")
    return Path(value)


def _socket(value: object) -> Path:
    text = value if isinstance(value, str) else ""
    if text.startswith("unix:"):
        text = text.removeprefix("unix:")
        if text.startswith("//") and not text.startswith("///"):
            raise ValueError(
                "has a host part, which Kubernetes would silently drop; "
                "write unix:/// with three slashes, then the path"
            )
        if not text.startswith("///") or re.search("[%?#]", text):
            raise ValueError("must be unix:/// and a plain path, or a plain path")
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
            "must let the owner read and write, at most the group too, others not: "
            "whoever may open the socket may decrypt"
        )
    return value


def _sized(most: int, least: int = 1) -> AfterValidator:
    def check(text: str) -> str:
        # Control characters first: they include what UTF-8 cannot encode.
        if _CONTROL.search(text) or not least <= len(text.encode()) <= most:
            raise ValueError(
                f"must be {least} to {most} bytes of text without control characters"
            )
        return text

    return AfterValidator(check)


def _matching(pattern: re.Pattern[str], sentence: str) -> AfterValidator:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(sentence)
        return text

    return AfterValidator(check)


def _environment(env: dict[str, str]) -> dict[str, str]:
    if not all(_ENV_NAME.fullmatch(name) for name in env):
        raise ValueError("must have names of letters, digits and _ only")
    if any(_CONTROL.search(value) for value in env.values()):
        raise ValueError("must not hold control characters")
    return env


Duration = Annotated[float, BeforeValidator(parse_duration), AfterValidator(_positive)]
DurationOrZero = Annotated[float, BeforeValidator(parse_duration)]
AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]


class Section(BaseModel):
    """What every part of the file has in common: strict, frozen, discreet."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )


class Listen(Section):
    """Where kube-apiserver finds the plugin."""

    socket: Annotated[Path, BeforeValidator(_socket)] = Path("/run/hsm-kms/kms.sock")
    mode: Annotated[str, BeforeValidator(_mode)] = "0600"
    group: Annotated[str, _sized(32)] | None = None
    lock_wait: DurationOrZero = 5.0

    @property
    def mode_bits(self) -> int:
        """The mode as chmod takes it."""
        return int(self.mode, 8)


class ApiV2(Section):
    """The v2 service (KMSv2)."""

    enabled: bool = True
    wrapping: Literal["token"] = "token"
    version: Literal["v2", "v2beta1"] = "v2"


class ApiV1(Section):
    """The v1beta1 service (KMSv1)."""

    enabled: bool = False
    wrapping: Literal["token"] = "token"


class Apis(Section):
    """Which of the two Kubernetes APIs are served."""

    v2: ApiV2 = ApiV2()
    v1: ApiV1 = ApiV1()


class Token(Section):
    """The PKCS#11 module, the token in it, and the workers that hold it."""

    module: AbsolutePath
    token_label: Annotated[str, _sized(32)] | None = None
    token_serial: Annotated[str, _sized(16)] | None = None
    slot: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    pin_file: AbsolutePath | None = None
    shared: bool = False
    workers: Annotated[int, Field(ge=1, le=16)] = 2
    sessions_per_worker: Annotated[int, Field(ge=1, le=64)] = 4
    session_wait: Duration = 1.0
    call_timeout: Duration = 2.0
    hang_timeout: Duration = 30.0
    start_timeout: Duration = 60.0
    # Both may carry a password for the module, so neither is in a repr.
    env: Annotated[dict[str, str], AfterValidator(_environment)] = Field(
        default={}, repr=False
    )
    init_args: Annotated[str, _sized(4096)] | None = Field(default=None, repr=False)
    login: Annotated[
        str,
        _matching(
            _LOGIN, "must be user, none, crypto-user, so, or 0x and a number in quotes"
        ),
    ] = "user"
    read_write: bool = False


class Keys(Section):
    """Which keys on the token are ours, and which of them is current."""

    label: Annotated[str, _sized(255)] = "k8s-kek"
    fingerprint: Literal["block", "cka_id"] = "block"
    current: (
        Annotated[str, _matching(_KEY_ID, "must be a key_id as `keys list` shows it")]
        | None
    ) = None
    suffix: (
        Annotated[
            str,
            _matching(re.compile("[a-z0-9]{1,16}"), "must be 1 to 16 of a-z and 0-9"),
        ]
        | None
    ) = None
    policy: Literal["enforce", "warn"] = "enforce"


class Health(Section):
    """How often the token is tried."""

    interval: Duration = 30.0


class Log(Section):
    """What is logged, and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] = "json"


class Config(Section):
    """The whole file."""

    version: Annotated[int, Field(ge=1, le=1)]  # Literal[1] would take true
    state_dir: AbsolutePath = Path("/var/lib/hsm-kms")
    scope: Annotated[str, _sized(64, least=0)] = ""
    listen: Listen = Listen()
    apis: Apis = Apis()
    token: Token
    keys: Keys = Keys()
    health: Health = Health()
    log: Log = Log()


def sections() -> dict[str, type[Section]]:
    """Every section by its dotted path, the file itself as ""."""
    found: dict[str, type[Section]] = {}

    def walk(path: str, section: type[Section]) -> None:
        found[path] = section
        for name, field in section.model_fields.items():
            kind: Any = field.annotation
            if isinstance(kind, type) and issubclass(kind, Section):
                walk(f"{path}.{name}".lstrip("."), kind)

    walk("", Config)
    return found
