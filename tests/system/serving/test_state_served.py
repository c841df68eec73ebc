"""The state directory as a running server uses it, and as it finds it broken."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.harness.command_line import HSM_KMS
from tests.harness.plugin import code_of
from tests.harness.processes import in_namespace, namespace_prefix
from tests.harness.wait import wait_for

LOST = (
    "the key last current here is not on the token; "
    "restore it, or name another in keys.current"
)
UNPROVEN = "an unproven PIN is not tried while its fate cannot be remembered"


def stopped_with_key(plugin):
    """A server that was healthy once, stopped; its key_id and a record."""
    plugin.start().wait_healthz("ok")
    sealed = plugin.encrypt(b"d" * 32)
    plugin.stop()
    plugin.log_file.unlink()
    return sealed


def errors(plugin):
    """Everything the log tells as the error of an event."""
    return "\n".join(
        event["error"] for event in plugin.events("token worker cannot start")
    )


def state_warnings(plugin):
    """What is wrong with the state directory, as the log tells it."""
    told = plugin.events("state directory")
    return [event.get("problem") or event["error"] for event in told]


def test_restart_while_token_is_away(make_plugin, hsm):
    """Status gives the remembered key_id and a sentence, until the token is back."""
    plugin = make_plugin(hsm)
    sealed = stopped_with_key(plugin)

    def open_again():
        return plugin.decrypt(sealed.ciphertext, sealed.key_id)

    hsm.take_away()
    plugin.start()
    wait_for(lambda: plugin.events("health"))
    status = plugin.status()

    assert sealed.key_id == status.key_id
    assert "see hsm-kms check on the node" in status.healthz
    assert "UNAVAILABLE" == code_of(lambda: plugin.encrypt(b"d"))
    assert "UNAVAILABLE" == code_of(open_again)

    hsm.put_back()
    plugin.wait_healthz("ok")
    assert b"d" * 32 == open_again()


def test_another_key_under_the_label(make_plugin, hsm):
    """A lost key is named and not replaced; what is held decrypts; `current` decides.

    The token holds, under the same label, another key than the last current one:
    as after a restored backup.
    """
    plugin, other = make_plugin(hsm), make_plugin(hsm)
    lost = stopped_with_key(plugin)
    held = swap_keys(hsm, plugin, other)
    plugin.start().wait_healthz(LOST)
    check = plugin.cli("check")

    assert lost.key_id == plugin.status().key_id
    assert "FAILED_PRECONDITION" == code_of(lambda: plugin.encrypt(b"d"))
    assert b"d" * 32 == plugin.decrypt(held.ciphertext, held.key_id)
    assert "FAILED_PRECONDITION" == code_of(
        lambda: plugin.decrypt(lost.ciphertext, lost.key_id)
    )
    gone = f"the key last current here, {lost.key_id}, is not on the token any more"
    assert gone in plugin.events("health")[-1]["detail"]
    assert 1 == check.returncode
    cure = "restore the token, or name another key in keys.current"
    assert f"✗ key: {gone}\n  hint: {cure}\n" in check.stdout

    plugin.stop()
    plugin.config["keys"]["current"] = held.key_id
    plugin.write_config()
    plugin.start().wait_healthz("ok")
    assert held.key_id == plugin.encrypt(b"d").key_id


def swap_keys(hsm, plugin, other):
    """Add a key, seal a record under it, and delete the first key."""
    plugin.cli("keys", "generate", "--another")
    listed = json.loads(plugin.cli("keys", "list", "-o", "json").stdout)
    (first,) = [key["cka_id"] for key in listed if key["state"] == "current"]
    (second,) = [key["key_id"] for key in listed if key["state"] == "pending"]
    other.config["keys"]["current"] = second
    other.write_config()
    sealed = stopped_with_key(other)
    hsm.pkcs11_tool("--delete-object", "--type", "secrkey", "--id", first)
    return sealed


def test_new_token_without_the_key(make_plugin, hsm, token_template, directory):
    """A token made anew under the same label never takes over by itself."""
    plugin = make_plugin(hsm)
    lost = stopped_with_key(plugin)
    hsm.take_away()
    fresh = token_template.copy(directory / "fresh")
    fresh.tokens.rename(hsm.tokens)
    plugin.start().wait_healthz(LOST)
    generated = plugin.cli("keys", "generate")

    assert 0 == generated.returncode
    assert lost.key_id not in generated.stdout
    assert lost.key_id == plugin.status().key_id
    assert "FAILED_PRECONDITION" == code_of(lambda: plugin.encrypt(b"d"))


@pytest.mark.parametrize(
    "damage",
    ["", "{", '{"version": 2}', "\0" * 100],
    ids=["empty", "cut", "version 2", "zeros"],
)
def test_last_key_corrupt(make_plugin, hsm, damage):
    """With a damaged record of the last key nothing encrypts until it is decided."""
    plugin = make_plugin(hsm)
    sealed = stopped_with_key(plugin)
    (plugin.state_dir / "last-key.json").write_text(damage)
    plugin.start()
    wait_for(lambda: plugin.events("token worker started"))

    assert "is not a state file of version 1" in state_warnings(plugin)[0]
    assert "FAILED_PRECONDITION" == code_of(lambda: plugin.encrypt(b"d"))
    assert b"d" * 32 == plugin.decrypt(sealed.ciphertext, sealed.key_id)
    if damage:  # once is enough for the slow half
        return
    check = plugin.cli("check")
    assert (1, "") == (check.returncode, check.stderr)
    assert "is not a state file of version 1" in check.stdout
    plugin.stop()
    plugin.config["keys"]["current"] = sealed.key_id
    plugin.write_config()
    plugin.start().wait_healthz("ok")


def test_pin_record_corrupt(make_plugin, hsm):
    """With a damaged record of PIN tries none is tried until `token retry-pin`."""
    plugin = make_plugin(hsm)
    stopped_with_key(plugin)
    (plugin.state_dir / "pin.json").write_text("{}")
    plugin.start()
    damaged = "the record of PIN tries in the state directory is damaged"
    wait_for(lambda: damaged in errors(plugin))
    check = plugin.cli("check")
    retried = plugin.cli("token", "retry-pin")
    plugin.wait_healthz("ok")

    assert 1 == check.returncode
    cure = "run `hsm-kms token retry-pin` when the PIN is known to be right"
    assert f"✗ PIN: {damaged}\n  hint: {cure}\n" in check.stdout
    assert 0 == retried.returncode


def test_missing(make_plugin, hsm, directory):
    """Where the directory cannot be made no PIN is tried, until it can."""
    state_dir = directory / "later" / "state"
    plugin = make_plugin(hsm, state_dir=str(state_dir)).start()
    wait_for(lambda: UNPROVEN in errors(plugin))
    check = plugin.cli("check")

    assert "No such file or directory" in state_warnings(plugin)[0]
    assert "UNAVAILABLE" == code_of(plugin.status)
    assert 1 == check.returncode
    assert f"✗ state directory: the state directory {state_dir} cannot" in check.stdout
    state_dir.parent.mkdir()
    plugin.wait_healthz("ok")


def test_removed_while_serving(plugin):
    """A directory that goes away under a healthy server stops nothing."""
    for file in plugin.state_dir.iterdir():
        file.unlink()
    plugin.state_dir.rmdir()

    assert plugin.encrypt(b"d" * 32).ciphertext
    assert "ok" == plugin.status().healthz


@pytest.fixture
def prefix():
    """A command prefix for a mount namespace of its own, or a skip."""
    found = namespace_prefix()
    if found is None:
        pytest.skip("no mount namespace can be made here")
    return found


def start_in(plugin, prefix, script):
    """Start the server in a mount namespace that the script has arranged."""
    command = [*HSM_KMS, "serve"]
    with plugin.log_file.open("ab") as log:
        plugin.process = subprocess.Popen(
            [
                *in_namespace(prefix, script.format(state=plugin.state_dir)),
                *(*command, "--config", str(plugin.config_file)),
            ],
            stderr=log,
        )
    wait_for(lambda: plugin.socket.exists() or plugin.process.poll() is not None)


def inside(plugin, *command):
    """Run a command in the server's mount namespace."""
    subprocess.run(
        ["nsenter", "--target", str(plugin.process.pid), "--mount", *command],
        check=True,
    )


READ_ONLY = "mount --bind {state} {state} && mount -o remount,bind,ro {state}"
FULL = (
    "mount -t tmpfs -o size=16k,mode=0700 tmpfs {state} && "
    "{{ head -c 1m /dev/zero >{state}/filler 2>/dev/null; :; }}"
)


def test_read_only_with_what_it_needs(make_plugin, hsm, prefix):
    """Read-only, with a proven PIN and the last key in it: a warning, and all works."""
    plugin = make_plugin(hsm)
    sealed = stopped_with_key(plugin)
    start_in(plugin, prefix, READ_ONLY)
    plugin.wait_healthz("ok")

    assert "Read-only file system" in state_warnings(plugin)[0]
    assert sealed.key_id == plugin.encrypt(b"d").key_id


def test_read_only_and_empty(make_plugin, hsm, prefix):
    """Read-only and empty: the PIN, which nobody has proven, is not tried."""
    plugin = make_plugin(hsm)
    plugin.state_dir.mkdir(mode=0o700)
    start_in(plugin, prefix, READ_ONLY)
    wait_for(lambda: UNPROVEN in errors(plugin))

    assert "Read-only file system" in errors(plugin)
    assert "UNAVAILABLE" == code_of(plugin.status)


def test_full_until_there_is_room(make_plugin, hsm, prefix):
    """Full: the unproven PIN waits; once there is room the server recovers."""
    plugin = make_plugin(hsm)
    plugin.state_dir.mkdir(mode=0o700)
    start_in(plugin, prefix, FULL)
    wait_for(lambda: UNPROVEN in errors(plugin))
    assert "No space left on device" in state_warnings(plugin)[0]

    inside(plugin, "rm", str(plugin.state_dir / "filler"))
    plugin.wait_healthz("ok")


def test_full_while_serving(make_plugin, hsm, prefix):
    """A key that cannot be remembered is used all the same, with a warning."""
    plugin = make_plugin(hsm)
    stopped_with_key(plugin)
    (plugin.state_dir / "last-key.json").unlink()
    start_in(plugin, prefix, READ_ONLY)
    plugin.wait_healthz("ok")

    assert plugin.events("the current key is not saved")
    assert plugin.encrypt(b"d").key_id
