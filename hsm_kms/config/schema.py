"""The shape of the configuration file: every key, its type, bounds and default."""

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

# What wraps the DEKs of an API: the token; a local KEK where the token cannot be had;
# a local KEK.
Wrapping = Literal["token", "fallback", "software"]

_LOGIN = re.compile(r"user|none|crypto-user|so|0x[0-9a-fA-F]{1,8}")


class Section(BaseModel):
    """What every part of the file has in common: strict, frozen, discreet."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )


class Listen(Section):
    """Where kube-apiserver finds the plugin."""

    socket: SocketPath = Path("/run/hsm-kms/kms.sock")
    mode: SocketMode = "0600"
    group: Annotated[str, sized(32)] | None = None
    lock_wait: DurationOrZero = 5.0

    @property
    def mode_bits(self) -> int:
        """The mode as chmod takes it."""
        return int(self.mode, 8)


class ApiV2(Section):
    """The v2 service (KMSv2)."""

    enabled: bool = True
    wrapping: Wrapping = "token"
    version: Literal["v2", "v2beta1"] = "v2"


class ApiV1(Section):
    """The v1beta1 service (KMSv1)."""

    enabled: bool = False
    wrapping: Wrapping = "software"  # v1 asks for one Encrypt per write


class Apis(Section):
    """Which of the two Kubernetes APIs are served."""

    v2: ApiV2 = ApiV2()
    v1: ApiV1 = ApiV1()


class Token(Section):
    """The PKCS#11 module, the token in it, and the workers that hold it."""

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
    # Both may carry a password for the module, so neither is in a repr.
    env: Environment = Field(default={}, repr=False)
    init_args: Annotated[str, sized(4096)] | None = Field(default=None, repr=False)
    login: Annotated[
        str,
        matching(
            _LOGIN, "must be user, none, crypto-user, so, or 0x and a number in quotes"
        ),
    ] = "user"
    read_write: bool = False


class Keys(Section):
    """Which keys on the token are ours, and which of them is current."""

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
    policy: Literal["enforce", "warn"] = "enforce"
    discover: Duration = 30.0


class LocalKeys(Section):
    """How long a local KEK serves, and what is taken of what local KEKs wrapped."""

    max_age: Days = 7 * 86400.0
    max_uses: Annotated[int, Field(ge=1, le=2**31 - 1)] = 2**20
    max_offline: DaysOrZero = 86400.0
    accept_local: bool = True
    verify_wraps: bool = True


class Health(Section):
    """How often the token is tried, and what Status says while it is away."""

    interval: Duration = 30.0
    grace: DurationOrZero = 60.0
    stop_writes_after: Days | None = None


class Http(Section):
    """Where probes, metrics and the server's own status are told."""

    listen: TcpAddress | None = "127.0.0.1:9462"
    admin_socket: SocketPath | None = Path("/run/hsm-kms/admin.sock")

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port to bind; None where nothing listens."""
        return None if self.listen is None else parse_tcp(self.listen)


class Log(Section):
    """What is logged, and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "text"] = "json"


class Config(Section):
    """The whole file."""

    version: Annotated[int, Field(ge=1, le=1)]  # Literal[1] would take true
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
