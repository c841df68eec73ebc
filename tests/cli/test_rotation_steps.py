"""Each step of a rotation by itself: what it sees, and what it does with that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from hsm_kms.cli.etcd.options import EtcdChoice
from hsm_kms.cli.keys.options import Given
from hsm_kms.cli.one_worker import LoginChoice
from hsm_kms.cli.rotation.etcd_steps import ReEncrypt, Scan, Verify
from hsm_kms.cli.rotation.journal import Rotation, StepRecord
from hsm_kms.cli.rotation.methods import method_for
from hsm_kms.cli.rotation.node_steps import SETTLE_SECONDS, Drop, Settle, Switch
from hsm_kms.cli.rotation.token_steps import Generate, Retire
from hsm_kms.cli.rotation.world import Means, World
from hsm_kms.clock import now, when
from hsm_kms.config import load
from hsm_kms.errors import HsmKmsError
from hsm_kms.migrate.kubectl import Kubectl
from tests.cli.every_command import SHARED, written_status
from tests.cli.keys_rig import Keys, stored_value
from tests.harness.etcd_server import EtcdServer
from tests.harness.wait import wait_for

SECRET, CONFIG_MAP = b"/registry/secrets/d/one", b"/registry/configmaps/d/one"
OTHERS = b"/registry/x"


@pytest.fixture
def server(make_plugin, hsm):
    """Provide a server that encrypts with the only key of a shared token."""
    plugin = make_plugin(hsm, **SHARED).start()
    plugin.wait_healthz("ok")
    plugin.status()
    return plugin


@pytest.fixture
def etcd(server):
    """Provide an etcd with a Secret and a ConfigMap under that key."""
    value = stored_value(server)
    with EtcdServer({SECRET: value, CONFIG_MAP: value, OTHERS: b"k8s"}) as made:
        yield made


@pytest.fixture
def world(server, etcd, directory):
    """Provide the world of a rotation that has just begun, on one node."""
    [old] = Keys(server).states()
    means = Means(
        given=Given(
            config=load.load(server.config_file), login=LoginChoice(), as_json=False
        ),
        etcd=EtcdChoice(endpoints=(etcd.endpoint,)),
        kubectl=Kubectl(),
        rate=20.0,
        allow_changes=False,
        wait=0.0,
    )
    rotation = Rotation(
        began=when(now()),
        old_key=old,
        nodes=[str(written_status(server, directory))],
        method="elsewhere",
        resources=["secrets"],
        activate_in=600.0,
    )
    return World(means, rotation)


def test_generate(world, server):
    """The step finds a key that is pending; a key that is gone ends the rotation."""
    step = Generate(world)
    assert not step.look().done
    done = step.do()
    new = world.rotation.new_key
    assert (True, f"{new} becomes current at {when(world.rotation.activation)}") == done

    again = World(world.means, structs.replace(world.rotation, new_key=None))
    assert (done, new) == (Generate(again).look(), again.rotation.new_key)
    Keys(server).json("cancel", new, "--yes")
    world.forget()
    with pytest.raises(HsmKmsError, match=f"the new key {new} is no longer on") as gone:
        step.look()
    assert "start --abandon" in gone.value.hint


def test_new_key_that_is_replaced(world, server):
    """If a third key is current, the new key is not called refused, nor cancelled."""
    keys, new = Keys(server), world.rotation.old_key
    keys.configure("keys", current=keys.generate("--another"))
    world.means = replace(
        world.means,
        given=replace(world.means.given, config=load.load(server.config_file)),
    )
    [current] = [each for each, state in keys.states().items() if state == "current"]
    world.rotation.old_key, world.rotation.new_key = "a" * 26, new

    with pytest.raises(HsmKmsError, match=f"{current} has replaced the new") as error:
        Generate(world).look()
    assert f"rotation start --abandon --old {'a' * 26}`" in error.value.hint


def test_two_pending_keys(world, server):
    """Which of two pending keys is meant, nobody can know."""
    keys = Keys(server)
    keys.rotate()
    keys.rotate("--force", "--activate-in", "20m")

    with pytest.raises(HsmKmsError, match="2 keys are pending: ") as error:
        Generate(world).look()
    assert "`hsm-kms keys cancel` for all but one" in error.value.hint


def test_switch(world):
    """A node that uses another key is counted, and named with the reason."""
    step = Switch(world)
    assert (False, "1 node will use the new key") == step.look()
    world.rotation.new_key = "b" * 26
    seen = step.look()
    assert not seen.done
    assert seen.text.startswith(f"0 of 1 node use {'b' * 26}; ")
    assert "the node does not hold sha256:" in seen.text
    world.rotation.new_key = world.rotation.old_key
    assert (True, f"the only node uses {world.rotation.old_key}") == step.look()
    step.require_readable()
    world.rotation.nodes = ["/no/such/file.json"]
    with pytest.raises(HsmKmsError, match="the file cannot be read: No such file"):
        step.require_readable()
    with pytest.raises(HsmKmsError, match="gave up waiting: 0 of 1 node use"):
        step.do()


def test_settle(world):
    """The three minutes begin when every node has switched, by the journal."""
    step = Settle(world)
    assert not step.look().done
    switched = now()
    record = StepRecord(when(switched), when(switched))
    world.rotation.steps["switch"] = record
    assert not step.look().done
    assert when(int(switched) + SETTLE_SECONDS) in step.look().text
    record.done = when(switched - SETTLE_SECONDS - 1)
    assert step.look().done


def test_re_encrypt(world, etcd, server, directory):
    """What is left under the key is told by resource, with what re-encrypts it."""
    method = method_for(world, directory / "progress")
    step = ReEncrypt(world, method)
    seen = step.look()
    old = world.rotation.old_key
    assert not seen.done
    assert seen.text.startswith(f"2 of 3 objects in {etcd.endpoint} are stored ")
    assert "(configmaps, secrets); you run `hsm-kms migrate` where" in seen.text
    with pytest.raises(HsmKmsError, match=f"2 of 3 objects .* under {old}"):
        step.do()

    class Rewriting:
        """Re-encrypt Secrets alone."""

        def plan(self):
            return ""

        def run(self):
            etcd.knobs.objects[SECRET] = b"k8s"

    with pytest.raises(HsmKmsError, match=f"1 of 3 objects .* under {old}") as left:
        ReEncrypt(world, Rewriting()).do()
    assert "--resource configmaps`" in left.value.hint
    for named in ("configmaps", "*.*"):
        world.rotation.resources = ["secrets", named]
        with pytest.raises(HsmKmsError) as late:
            ReEncrypt(world, Rewriting()).do()
        assert "may use the new key a minute later" in late.value.hint
    etcd.knobs.objects[b"/registry/deployments/d/one"] = etcd.knobs.objects[CONFIG_MAP]
    world.rotation.resources = ["secrets", "configmaps", "deployments.apps"]
    with pytest.raises(HsmKmsError) as late:
        ReEncrypt(world, Rewriting()).do()
    assert "may use the new key a minute later" in late.value.hint


def test_scan(world, etcd):
    """An object that came under the key afterwards ends the rotation."""
    step = Scan(world)
    assert not step.look().done
    with pytest.raises(HsmKmsError, match="although all were re-encrypted"):
        step.do()
    etcd.knobs.objects = {OTHERS: b"k8s"}
    assert step.do().done


def test_verify(world, etcd):
    """What was verified is in the journal; a value that cannot be decrypted ends it."""
    step = Verify(world)
    assert not step.look().done
    done = step.do()
    assert (True, "the token decrypts the one wrapped key (2 objects)") == done
    world.rotation.done(step.name, done.text)
    assert done == step.look()

    etcd.knobs.objects[SECRET] = etcd.knobs.objects[SECRET][:-60] + bytes(60)
    with pytest.raises(HsmKmsError, match="cannot be decrypted") as error:
        step.do()
    assert f"`hsm-kms keys retire {world.rotation.old_key}` retires" in error.value.hint
    etcd.knobs.objects = {OTHERS: b"k8s"}
    assert (True, "nothing in 1 object was wrapped by hsm-kms") == step.do()


def test_retire_and_drop(world, etcd, server):
    """The key is retired once it is not in use, and then no node may hold it.

    A node that has not read its keys may hold it.
    """
    keys, old = Keys(server), world.rotation.old_key
    retire, drop = Retire(world), Drop(world)
    assert not retire.look().done
    with pytest.raises(HsmKmsError, match=f"this node encrypts with {old}"):
        retire.do()
    assert f"still holds {old}, as current" in drop.look().text

    keys.configure("keys", current=keys.generate("--another"))
    world.means = replace(
        world.means,
        given=replace(world.means.given, config=load.load(server.config_file)),
    )
    world.forget()
    wait_for(lambda: server.status().key_id != old)
    etcd.knobs.objects = {OTHERS: b"k8s"}
    assert not retire.look().done
    assert (True, f"{old} is retired") == retire.do()
    assert retire.look().done
    file = Path(world.rotation.nodes[0])
    shown = json.loads(file.read_text())
    before, shown["server"]["keys"] = shown["server"]["keys"], []
    file.write_text(json.dumps(shown))
    assert (False, f"{file} has not read its keys yet") == drop.look()
    [key] = before
    shown["server"]["keys"] = [key | {"key_id": server.status().key_id}]
    file.write_text(json.dumps(shown))
    assert (True, f"no node decrypts with {old}") == drop.look()
