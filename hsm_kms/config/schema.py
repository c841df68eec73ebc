"""Define the configuration file: every key with its type, bounds and default."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hsm_kms.config.fields import (
    AbsolutePath,
    Aliases,
    CkaIds,
    Days,
    DaysOrZero,
    Duration,
    DurationOrZero,
    Environment,
    KeyIds,
    SocketMode,
    SocketPath,
    TcpAddress,
    matching,
    parse_tcp,
    sized,
)
from hsm_kms.config.formats import KEY_ID

# What wraps the DEKs of an API: the token; a local KEK while the token is unavailable;
# always a local KEK.
Wrapping = Literal["token", "fallback", "software"]

SELECTORS = ("uri", "token_label", "token_serial", "slot")
"""Settings that select the token; exactly one of them must be given."""

_LOGIN = re.compile(r"user|none|crypto-user|so|0x[0-9a-fA-F]{1,8}")


class Section(BaseModel):
    """Base of all sections: strict types, immutable, and no values in messages."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )


class Listen(Section):
    """Define the section `listen`: the socket that kube-apiserver connects to."""

    socket: SocketPath = Path("/run/hsm-kms/kms.sock")
    mode: SocketMode = "0600"
    group: Annotated[str, sized(32)] | None = None
    lock_wait: DurationOrZero = 5.0

    @property
    def mode_bits(self) -> int:
        """Return the mode of the socket as chmod takes it."""
        return int(self.mode, 8)


class ApiV2(Section):
    """Define the section `apis.v2`: how KMS v2 is served."""

    enabled: bool = True
    wrapping: Wrapping = "token"
    version: Literal["v2", "v2beta1"] = "v2"


class ApiV1(Section):
    """Define the section `apis.v1`: how KMS v1 is served."""

    enabled: bool = False
    wrapping: Wrapping = "software"  # v1 calls Encrypt for each write


# JSON Schemas of rules that concern several settings; `joint_rules` has all of them.
_OFF = {"properties": {"enabled": {"const": False}}, "required": ["enabled"]}
_ON = {"properties": {"enabled": {"const": True}}, "required": ["enabled"]}
_ONE_API: dict[str, Any] = {
    "anyOf": [
        {"not": {"properties": {"v2": _OFF}, "required": ["v2"]}},
        {"properties": {"v1": _ON}, "required": ["v1"]},
    ]
}


def _given(name: str) -> dict[str, Any]:
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


_NO_LOGIN = {"required": ["login"], "properties": {"login": {"const": "none"}}}
_ONE_TOKEN: dict[str, Any] = {
    "required": [],  # a URI may name the module
    "allOf": [
        {"oneOf": [_given(each) for each in SELECTORS]},
        {"anyOf": [_given("module"), _given("uri")]},
        {"anyOf": [_given("pin_file"), _given("uri"), _NO_LOGIN]},
    ],
}


class Apis(Section):
    """Define the section `apis`: which Kubernetes APIs are served."""

    model_config = ConfigDict(json_schema_extra=_ONE_API)

    v2: ApiV2 = ApiV2()
    v1: ApiV1 = ApiV1()


class Token(Section):
    """Define the section `token`: module, token, PIN file and workers."""

    model_config = ConfigDict(json_schema_extra=_ONE_TOKEN)

    module: AbsolutePath
    uri: str | None = None
    token_label: Annotated[str, sized(32)] | None = None
    token_serial: Annotated[str, sized(16)] | None = None
    slot: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    pin_file: AbsolutePath | None = None
    shared: bool = False
    workers: Annotated[int, Field(ge=1, le=16)] = 2
    sessions_per_worker: Annotated[int, Field(ge=1, le=64)] = 4
    session_wait: Duration = 1.0
    call_timeout: Duration = 2.0
    hang_timeout: Duration = 30.0
    start_timeout: Duration = 60.0
    # Both may carry a password for the module, so the repr leaves them out.
    env: Environment = Field(default={}, repr=False)
    init_args: Annotated[str, sized(4096)] | None = Field(default=None, repr=False)
    login: Annotated[
        str,
        matching(
            _LOGIN,
            "must be user, none, crypto-user, so, or a quoted number such as 0x1",
        ),
    ] = "user"
    read_write: bool = False


class Keys(Section):
    """Define the section `keys`: which keys are used, and which one is current."""

    label: Annotated[str, sized(255)] | None = "k8s-kek"
    ids: CkaIds = ()
    mechanism: Literal["auto", "aes-gcm", "aes-cbc-hmac-sha256"] = "auto"
    gcm_iv: Literal["auto", "caller", "token", "appended"] = "auto"
    fingerprint: Literal["block", "cka_id"] = "block"
    current: (
        Annotated[str, matching(KEY_ID, "must be a key_id as `keys list` shows it")]
        | None
    ) = None
    suffix: (
        Annotated[
            str,
            matching(re.compile("[a-z0-9]{1,16}"), "must be 1 to 16 of a-z and 0-9"),
        ]
        | None
    ) = None
    retired: KeyIds = ()
    also_known_as: Aliases = {}
    foreign: Literal["refuse", "decrypt"] = "refuse"
    policy: Literal["enforce", "warn"] = "enforce"
    discover: Duration = 20.0


class LocalKeys(Section):
    """Define the section `local_keys`: when local KEKs are replaced and accepted."""

    max_age: Days = 7 * 86400.0
    max_uses: Annotated[int, Field(ge=1, le=2**31 - 1)] = 2**20
    max_offline: DaysOrZero = 86400.0
    accept_local: bool = True
    verify_wraps: bool = True


class Health(Section):
    """Define the section `health`: how often the token is tested, and Status."""

    interval: Duration = 20.0  # some devices drop a connection after 30 s of idleness
    canary: Literal["crypto", "session"] = "crypto"
    key: Annotated[str, sized(255)] | None = None
    grace: DurationOrZero = 60.0
    stop_writes_after: Days | None = None

    @property
    def spares_keks(self) -> bool:
        """Return True if regular inspections do not use the KEKs."""
        return self.canary == "session" or self.key is not None


class Http(Section):
    """Define the section `http`: probes, metrics and the admin socket."""

    listen: TcpAddress | None = "127.0.0.1:9462"
    admin_socket: SocketPath | None = Path("/run/hsm-kms/admin.sock")

    @property
    def address(self) -> tuple[str, int] | None:
        """Return host and port to bind, or None if `listen` is null."""
        return None if self.listen is None else parse_tcp(self.listen)


class Log(Section):
    """Define the section `log`: the lowest level, and the format."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] = "json"


# Records go to one place.
_ONE_TARGET: dict[str, Any] = {
    "not": {
        "required": ["stdout"],
        "properties": {"stdout": {"const": True}},
        "allOf": [_given("file")],
    }
}


class Audit(Section):
    """Define the section `audit`: where audit records go, and what a failure does."""

    model_config = ConfigDict(json_schema_extra=_ONE_TARGET)

    file: AbsolutePath | None = None
    stdout: bool = False
    on_error: Literal["continue", "refuse"] = "continue"

    @property
    def enabled(self) -> bool:
        """Return True if events are recorded."""
        return self.stdout or self.file is not None


class Config(Section):
    """Define the configuration file as a whole."""

    version: Annotated[int, Field(ge=1, le=1)]  # Literal[1] would accept true
    state_dir: AbsolutePath = Path("/var/lib/hsm-kms")
    scope: Annotated[str, sized(64, least=0)] = ""
    listen: Listen = Listen()
    apis: Apis = Apis()
    token: Token
    keys: Keys = Keys()
    local_keys: LocalKeys = LocalKeys()
    health: Health = Health()
    http: Http = Http()
    log: Log = Log()
    audit: Audit = Audit()


def sections() -> dict[str, type[Section]]:
    """Return every section by its dotted path; the file itself has the path ""."""
    found: dict[str, type[Section]] = {}

    def walk(path: str, section: type[Section]) -> None:
        found[path] = section
        for name, field in section.model_fields.items():
            kind: Any = field.annotation
            if isinstance(kind, type) and issubclass(kind, Section):
                walk(f"{path}.{name}".lstrip("."), kind)

    walk("", Config)
    return found
