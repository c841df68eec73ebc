"""Test which settings the configuration file accepts, and how it is documented."""

import itertools
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hsm_kms.config.formats import (
    format_duration,
    parse_duration,
    parse_go_duration,
)
from hsm_kms.config.load import effective, parse
from hsm_kms.config.schema import Config, Section, sections
from hsm_kms.errors import ConfigError
from hsm_kms.server.reload import CHANGES, Change

EFFECTS = {
    Change.ADJUST: "at once",
    Change.REPLACE: "new workers",
    Change.RESTART: "restart",
}
DOCUMENT = Path(__file__).parents[3] / "docs" / "configuration.md"
SMALLEST = {
    "version": 1,
    "token": {"module": "/m.so", "token_label": "k8s", "pin_file": "/pin"},
}
CANARY = "Xq7hunterZ2"


def with_(changes=()):
    """Return the smallest configuration as YAML; {"a.b": 1} changes or adds a.b."""
    tree = yaml.safe_load(yaml.safe_dump(SMALLEST, sort_keys=False))
    for path, value in dict(changes).items():
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return yaml.safe_dump(tree, sort_keys=False)


def faults_of(text):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return list(caught.value.faults)


def leaves():
    for path, section in sections().items():
        for name, field in section.model_fields.items():
            kind = field.annotation
            if not (isinstance(kind, type) and issubclass(kind, Section)):
                yield f"{path}.{name}".lstrip(".")


def test_smallest_file_gets_the_defaults():
    """A file with `version` and `token` is enough; all other settings have defaults."""
    config = parse(with_())

    assert Path("/m.so") == config.token.module
    assert "k8s" == config.token.token_label
    assert Path("/var/lib/hsm-kms") == config.state_dir
    assert Path("/run/hsm-kms/kms.sock") == config.listen.socket
    assert 0o600 == config.listen.mode_bits
    assert (True, False) == (config.apis.v2.enabled, config.apis.v1.enabled)
    assert ("token", "software") == (config.apis.v2.wrapping, config.apis.v1.wrapping)
    assert 2.0 == config.token.call_timeout
    assert "k8s-kek" == config.keys.label
    assert ((), {}, 20.0) == (
        config.keys.retired,
        config.keys.also_known_as,
        config.keys.discover,
    )


def test_config_is_frozen():
    """A configuration cannot be changed after it was read."""
    config = parse(with_())

    with pytest.raises(ValueError, match="frozen"):
        config.scope = "other"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0.0),
        ("500ms", 0.5),
        ("2s", 2.0),
        ("5m", 300.0),
        ("24h", 86400.0),
        ("7d", 604800.0),
    ],
)
def test_durations(text, seconds):
    """A duration is a whole number with its unit."""
    assert seconds == parse_duration(text)


@pytest.mark.parametrize(
    "bad", ["", "5", "1.5s", "-1s", "1 s", "1w", "\u0661s", 5, None], ids=repr
)
def test_other_durations_are_refused(bad):
    """A duration without a unit, or in any other form, is refused."""
    with pytest.raises(ValueError, match="whole number with its unit"):
        parse_duration(bad)


def test_durations_of_go():
    """Options also take durations as Go, and so etcdctl and kubectl, write them."""
    for text, seconds in {
        "0": 0.0,
        "1m30s": 90.0,
        "2.5s": 2.5,
        ".5m": 30.0,
        "1.s": 1.0,
        "1h15m30.918s": 4530.918,
        "100us": 0.0001,
        "100\u00b5s": 0.0001,
        "7ns": 7e-9,
        "7d": 604800.0,
    }.items():
        assert seconds == pytest.approx(parse_go_duration(text)), text
    for bad in ("", "5", ".", ".s", "-1s", "1m30", "1 m", "1w", "\u0661s", "s"):
        with pytest.raises(ValueError, match="must be a duration such as 500ms"):
            parse_go_duration(bad)


@given(st.integers(0, 10**9), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_durations_are_written_as_they_are_read(count, unit):
    """A duration that `config show` prints reads back as the same duration."""
    seconds = parse_duration(f"{count % 10**6}{unit}")

    assert seconds == pytest.approx(parse_duration(format_duration(seconds)))


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("/run/k/kms.sock", "/run/k/kms.sock"),
        ("unix:///run/k/kms.sock", "/run/k/kms.sock"),
        ("/" + "s" * 106, "/" + "s" * 106),
    ],
)
def test_socket_is_a_path_or_a_url(given, path):
    """The socket can be given as a path or as EncryptionConfiguration's unix URL."""
    assert Path(path) == parse(with_({"listen.socket": given})).listen.socket


HOST_PART = (
    "listen.socket: has a host part, which Kubernetes would silently drop; "
    "write unix:/// with three slashes, then the path (line 7)"
)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("unix://host/run/kms.sock", HOST_PART),
        ("unix://run/kms.sock", HOST_PART),
        ("run/kms.sock", "must be an absolute path, beginning with /"),
        (
            "unix:/run/kms.sock",
            "must be an absolute path, with or without unix:// before",
        ),
        ("unix:///a%20b", "must be an absolute path, with or without unix:// before"),
        ("unix:///@name", "must not be abstract"),
        ("/" + "s" * 107, "must be at most 107 bytes long"),
        ("/" + "ü" * 54, "must be at most 107 bytes long"),
        ("/run/", "must name a file, not a directory"),
        ("/", "must name a file, not a directory"),
        ("/a\0b", "must not contain control characters"),
        (5, "must be an absolute path, beginning with /"),
    ],
)
def test_other_sockets_are_refused(given, fault):
    """A socket that Kubernetes would misread or the kernel refuse is a fault."""
    [told] = faults_of(with_({"listen.socket": given}))

    assert told.startswith("listen.socket: ")
    assert fault in told


@pytest.mark.parametrize("mode", ["0600", "0660", "600", "0620", "0640"])
def test_modes(mode):
    """A mode that gives the owner, or owner and group, access is accepted."""
    assert int(mode, 8) == parse(with_({"listen.mode": mode})).listen.mode_bits


@pytest.mark.parametrize("mode", ["0666", "0777", "0400", "0700", "rw", "0o600", 384])
def test_other_modes_are_refused(mode):
    """A mode that gives other users access is refused."""
    [told] = faults_of(with_({"listen.mode": mode}))

    assert told.startswith("listen.mode: ")


def test_retired_and_also_known_as():
    """Key_ids can have suffixes; CKA_IDs can have upper-case or lower-case digits."""
    config = parse(
        with_(
            {
                "keys.retired": ["a" * 26, "b" * 26 + ".two"],
                "keys.also_known_as": {"c" * 26 + ".old": "0A01", "d" * 26: "ff"},
            }
        )
    )

    assert ("a" * 26, "b" * 26 + ".two") == config.keys.retired
    assert {"c" * 26 + ".old": "0a01", "d" * 26: "ff"} == config.keys.also_known_as
    assert config == parse(yaml.safe_dump(effective(config)))


@pytest.mark.parametrize("api", ["v2", "v1"])
@pytest.mark.parametrize("wrapping", ["token", "fallback", "software"])
def test_wrapping(api, wrapping):
    """Each API has its own wrapping mode, independent of the other API."""
    apis = parse(with_({f"apis.{api}.wrapping": wrapping})).apis

    assert wrapping == getattr(apis, api).wrapping


def test_local_keys_and_health():
    """Ages and outages can be given in days; `grace` and `max_offline` can be 0s."""
    config = parse(
        with_(
            {
                "local_keys.max_age": "30d",
                "local_keys.max_uses": 2**31 - 1,
                "local_keys.max_offline": "0s",
                "health.grace": "0s",
                "health.stop_writes_after": "36h",
            }
        )
    )

    local, health = config.local_keys, config.health
    assert (2592000.0, 2**31 - 1, 0.0) == (
        local.max_age,
        local.max_uses,
        local.max_offline,
    )
    assert (0.0, 129600.0) == (health.grace, health.stop_writes_after)
    assert config == parse(yaml.safe_dump(effective(config)))


def test_accept_local():
    """`accept_local: false` is refused if an enabled API can wrap in software."""
    modes = ["token", "fallback", "software", None]
    both = [(True, False), (False, True), (True, True)]
    for v2, v1, on in itertools.product(modes, modes, both):
        changes = {
            f"apis.{name}.wrapping": w for name, w in [("v2", v2), ("v1", v1)] if w
        }
        changes |= {"apis.v2.enabled": on[0], "apis.v1.enabled": on[1]}
        text = with_(changes | {"local_keys.accept_local": False})
        wrappings = [("v2", on[0], v2 or "token"), ("v1", on[1], v1 or "software")]
        faulty = [name for name, enabled, w in wrappings if enabled and w != "token"]
        if not faulty:
            assert not parse(text).local_keys.accept_local, text
            continue
        [told] = faults_of(text)
        named = " and ".join(faulty)
        expected = f"accept_local: must be true, because {named} can wrap in software"
        assert expected in told, text


@pytest.mark.parametrize(
    "login", ["user", "none", "crypto-user", "so", "0x80000001", "0X1"]
)
def test_logins(login):
    """A login is one of four names or a vendor's number."""
    if login == "0X1":
        assert faults_of(with_({"token.login": login}))
    else:
        assert login == parse(with_({"token.login": login})).token.login


def test_repr_hides_what_may_be_a_secret():
    """The repr shows neither `env` nor `init_args`, which may carry passwords."""
    text = with_({"token.env": {"A": CANARY}, "token.init_args": CANARY})

    assert CANARY not in repr(parse(text))


def test_effective_is_complete_and_discreet():
    """`config show` prints every key, but hides the values of unknown variables."""
    env = {"SOFTHSM2_CONF": "/etc/softhsm2.conf", "PASSWORD": CANARY}
    shown = effective(parse(with_({"token.env": env, "token.init_args": CANARY})))

    assert CANARY not in str(shown)
    assert {**env, "PASSWORD": "***"} == shown["token"]["env"]
    assert shown["token"]["init_args"] == "***"
    assert set(Config.model_fields) == set(shown)


def test_effective_writes_durations_as_the_file_does():
    """`config show` prints durations with their unit."""
    shown = effective(parse(with_({"token.session_wait": "500ms"})))

    assert shown["token"]["session_wait"] == "500ms"
    assert shown["token"]["start_timeout"] == "1m"


def test_effective_reads_back():
    """The output of `config show` reads back as the same configuration."""
    config = parse(with_({"listen.group": "kms", "keys.suffix": "b2"}))

    assert config == parse(yaml.safe_dump(effective(config)))


def test_every_key_is_documented():
    """docs/configuration.md has a row for each key: default, and effect of a change."""
    rows = {
        line.split("`")[1]: line.split(" | ")
        for line in DOCUMENT.read_text().splitlines()
        if line.startswith("| `")
    }
    assert sorted(leaves()) == sorted(rows)
    for path in leaves():
        section, _, name = path.rpartition(".")
        field = sections()[section].model_fields[name]
        _, _, default, change, _ = rows[path]
        expected = "required" if field.is_required() else shown_default(field.default)
        assert expected == yaml.safe_load(default.strip("`")), path
        assert EFFECTS[CHANGES.get(path) or CHANGES[section]] == change, path


def shown_default(value):
    if isinstance(value, float):
        return format_duration(value)
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
