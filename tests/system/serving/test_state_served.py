"""The state directory as a running server uses it, and as it finds it broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from tests.harness.command_line import HSM_KMS
from tests.harness.plugin import Plugin, code_of
from tests.harness.processes import in_namespace, namespace_prefix
from tests.harness.wait import wait_for

LOST = (
    "the last current key is not on the token; "
    "restore it, or set keys.current to another key"
)
UNPROVEN = "not logging in: a rejected PIN could not be recorded"


def stopped_with_key(plugin):
    """Let a server become healthy and stop it; return a record."""
    plugin.start().wait_healthz("ok")
    sealed = plugin.encrypt(b"d" * 32)
    plugin.stop()
    plugin.log_file.unlink()
    return sealed


@pytest.fixture(scope="session")
def former(session_directory, keyed_template, pin_file):
    """A server on the token of `hsm` that was healthy and stopped, and a record."""
    directory = session_directory / "former"
    directory.mkdir(mode=0o700)
    plugin = Plugin(directory, keyed_template, pin_file)
    return plugin, stopped_with_key(plugin)


@pytest.fixture
def sealed(former):
    """A record that `plugin` made before it was stopped."""
    return former[1]


@pytest.fixture
def plugin(make_plugin, hsm, former):
    """A server that was healthy and has been stopped."""
    made = make_plugin(hsm)
    shutil.copytree(former[0].state_dir, made.state_dir, dirs_exist_ok=True)
    return made


def errors(plugin):
    """Return the errors of all failed starts in the log."""
    return "\n".join(
        event["error"] for event in plugin.events("token worker cannot start")
    )


def state_warnings(plugin):
    """Return the problems with the state directory that the log reports."""
    told = plugin.events("state directory problem")
    return [event["error"] for event in told]


def test_restart_while_token_is_unavailable(plugin, sealed, hsm):
    """Until the token is back, Status has the saved key_id and an error message."""

    def open_again():
        return plugin.decrypt(sealed.ciphertext, sealed.key_id)

    hsm.take_away()
    plugin.start()
    wait_for(lambda: plugin.events("health"))
    status = plugin.status()

    assert sealed.key_id == status.key_id
    assert "run hsm-kms check on the node" in status.healthz
    assert "UNAVAILABLE" == code_of(lambda: plugin.encrypt(b"d"))
    assert "UNAVAILABLE" == code_of(open_again)

    hsm.put_back()
    plugin.wait_healthz("ok")
    assert b"d" * 32 == open_again()


def test_another_key_under_the_label(make_plugin, plugin, sealed, hsm):
    """Another key under the label never replaces a lost one until `current` names it.

    The token holds another key than the last current one, as after a restored backup.
    """
    lost, other = sealed, make_plugin(hsm)
    held = swap_keys(hsm, plugin, other)
    plugin.start().wait_healthz(LOST)
    check = plugin.cli("check")

    assert lost.key_id == plugin.status().key_id
    assert "FAILED_PRECONDITION" == code_of(lambda: plugin.encrypt(b"d"))
    assert b"d" * 32 == plugin.decrypt(held.ciphertext, held.key_id)
    assert "FAILED_PRECONDITION" == code_of(
        lambda: plugin.decrypt(lost.ciphertext, lost.key_id)
    )
    gone = f"the last current key, {lost.key_id}, is not on the token"
    assert gone in plugin.events("health")[-1]["detail"]
    assert 1 == check.returncode
    cure = "restore it, or name another key in keys.current"
    assert f"✗ key: {gone}\n  hint: {cure}" in check.stdout

    plugin.stop()
    plugin.config["keys"]["current"] = held.key_id
    plugin.write_config()
    plugin.start().wait_healthz("ok")
    assert held.key_id == plugin.encrypt(b"d").key_id


def swap_keys(hsm, plugin, other):
    """Generate a key, make a record under it, and delete the first key."""
    plugin.cli("keys", "generate", "--another")
    listed = json.loads(plugin.cli("keys", "list", "-o", "json").stdout)
    (first,) = [key["cka_id"] for key in listed if key["state"] == "current"]
    (second,) = [key["key_id"] for key in listed if key["state"] == "pending"]
    other.config["keys"]["current"] = second
    other.write_config()
    sealed = stopped_with_key(other)
    hsm.pkcs11_tool("--delete-object", "--type", "secrkey", "--id", first)
    return sealed


def test_new_token_without_the_key(plugin, sealed, hsm, token_template, directory):
    """A new token with the same label never replaces the lost one by itself."""
    lost = sealed
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
def test_last_key_corrupt(plugin, sealed, damage):
    """If last-key.json is damaged, Encrypt fails until keys.current names the key."""
    (plugin.state_dir / "last-key.json").write_text(damage)
    plugin.start()
    wait_for(lambda: plugin.events("token worker started"))

    assert "is not a state file of version 1" in state_warnings(plugin)[0]
    assert "FAILED_PRECONDITION" == code_of(lambda: plugin.encrypt(b"d"))
    assert b"d" * 32 == plugin.decrypt(sealed.ciphertext, sealed.key_id)
    if damage:  # one case is enough for the slow half
        return
    check = plugin.cli("check")
    assert (1, "") == (check.returncode, check.stderr)
    assert "is not a state file of version 1" in check.stdout
    plugin.stop()
    plugin.config["keys"]["current"] = sealed.key_id
    plugin.write_config()
    plugin.start().wait_healthz("ok")


def test_pin_record_corrupt(plugin):
    """If pin.json is damaged, no PIN is tried until `token retry-pin`."""
    (plugin.state_dir / "pin.json").write_text("{}")
    plugin.start()
    damaged = "the record of PIN tries in the state directory is damaged"
    wait_for(lambda: damaged in errors(plugin))
    check = plugin.cli("check")
    retried = plugin.cli("token", "retry-pin")
    plugin.wait_healthz("ok")

    assert 1 == check.returncode
    cure = "check that the PIN is right, then run `hsm-kms token retry-pin`"
    assert f"✗ PIN: {damaged}\n  hint: {plugin.hint(cure)}\n" in check.stdout
    assert 0 == retried.returncode


def test_not_trusted(plugin, sealed):
    """In a directory that others can write to no file is believed, until it is mended.

    A planted verdict does not make the server try a PIN, and a planted or removed last
    key does not make it announce another one.
    """
    plugin.state_dir.chmod(0o770)
    plugin.start()
    wait_for(lambda: "other users can write to it" in errors(plugin))
    check = plugin.cli("check")
    status = code_of(plugin.status)
    plugin.state_dir.chmod(0o700)
    plugin.wait_healthz("ok")

    assert "UNAVAILABLE" == status
    assert 1 == check.returncode
    assert "other users can write to it" in check.stdout
    assert any("is not trusted" in each for each in state_warnings(plugin))
    assert sealed.key_id == plugin.status().key_id
    assert b"d" * 32 == plugin.decrypt(sealed.ciphertext, sealed.key_id)


def test_missing(make_plugin, hsm, directory):
    """If the state directory cannot be created, no PIN is tried until it can."""
    state_dir = directory / "later" / "state"
    plugin = make_plugin(hsm, state_dir=str(state_dir)).start()
    wait_for(lambda: UNPROVEN in errors(plugin))
    check = plugin.cli("check")

    assert "No such file or directory" in state_warnings(plugin)[0]
    assert "UNAVAILABLE" == code_of(plugin.status)
    assert 1 == check.returncode
    assert (
        f"✗ state directory: the state directory {state_dir} does not" in check.stdout
    )
    state_dir.parent.mkdir()
    plugin.wait_healthz("ok")


def test_removed_while_serving(plugin):
    """A server whose state directory disappears keeps working."""
    plugin.start().wait_healthz("ok")
    plugin.state_dir.rename(plugin.directory / "removed")

    assert plugin.encrypt(b"d" * 32).ciphertext
    assert "ok" == plugin.status().healthz


@pytest.fixture
def prefix():
    """Return the command prefix for a mount namespace, or skip the test."""
    found = namespace_prefix()
    if found is None or os.geteuid() != 0:
        pytest.skip("no mount namespace can be made here")
    return found


def start_in(plugin, prefix, script):
    """Start the server in a mount namespace that the script arranges."""
    command = [*HSM_KMS, "serve"]
    with plugin.log_file.open("ab") as log:
        plugin.process = subprocess.Popen(
            [
                *in_namespace(prefix, script.format(state=plugin.state_dir)),
                *(*command, "--config", str(plugin.config_file)),
            ],
            stderr=log,
        )
    plugin.wait_listening()


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


def test_read_only_with_what_it_needs(plugin, sealed, prefix):
    """A read-only state directory that has all the server needs is only a warning."""
    start_in(plugin, prefix, READ_ONLY)
    plugin.wait_healthz("ok")

    told = "Read-only file system; mount its file system read-write"
    assert told in state_warnings(plugin)[0]
    assert sealed.key_id == plugin.encrypt(b"d").key_id


def test_read_only_and_empty(make_plugin, hsm, prefix):
    """If the state directory is read-only and empty, the unproven PIN is not tried."""
    plugin = make_plugin(hsm)
    start_in(plugin, prefix, READ_ONLY)
    wait_for(lambda: UNPROVEN in errors(plugin))

    assert "Read-only file system" in errors(plugin)
    assert "UNAVAILABLE" == code_of(plugin.status)


def test_full_until_there_is_room(make_plugin, hsm, prefix):
    """If the state directory is full, the unproven PIN is not tried until it is not."""
    plugin = make_plugin(hsm)
    start_in(plugin, prefix, FULL)
    wait_for(lambda: UNPROVEN in errors(plugin))
    told = "No space left on device; free space on its disk"
    assert told in state_warnings(plugin)[0]

    inside(plugin, "rm", str(plugin.state_dir / "filler"))
    plugin.wait_healthz("ok")


def test_full_while_serving(plugin, prefix):
    """A current key that cannot be saved is used nevertheless, with a warning."""
    (plugin.state_dir / "last-key.json").unlink()
    start_in(plugin, prefix, READ_ONLY)
    plugin.wait_healthz("ok")

    assert plugin.events("the current key is not saved")
    assert plugin.encrypt(b"d").key_id
