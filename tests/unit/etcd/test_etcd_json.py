"""Test reading the output of `etcdctl get --prefix / -w json`: whole and damaged."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_kms.etcd import stream
from hsm_kms.etcd.json_file import JsonFile
from hsm_kms.etcd.source import EtcdError, Item
from hsm_kms.etcd.tally import scan
from tests.harness.command_line import HSM_KMS
from tests.harness.etcd_samples import KEY_ID, etcdctl_json, v1, v2, written
from tests.harness.examples import examples

MIB = 1024**2
OBJECTS = {
    "/registry/secrets/default/a": v2(),
    "/registry/secrets/default/b": v1(),
    "/registry/pods/default/c": b"k8s\0pod",
    "/other/d": b"",
}
KEYS_ONLY = etcdctl_json(dict.fromkeys(OBJECTS, b"")).replace(b', "value": ""', b"")


def read(path, **given):
    """Return every object of a file."""
    with JsonFile(path, **given) as source:
        return list(source)


def test_objects_below_the_prefix(tmp_path):
    """Every object below the prefix is read, with the revision of the output."""
    with JsonFile(written(tmp_path / "dump.json", OBJECTS)) as source:
        found = list(source)
        told = (source.revision, source.total(), source.share())

    wanted = [Item(k.encode(), v) for k, v in OBJECTS.items() if k.startswith("/reg")]
    assert wanted == found
    assert (7, None, 1.0) == told
    assert str(tmp_path / "dump.json") == source.name


def test_without_a_prefix(tmp_path):
    """An empty prefix reads every object, also those with an empty value."""
    found = read(written(tmp_path / "dump.json", OBJECTS), prefix=b"")

    assert len(OBJECTS) == len(found)
    assert Item(b"/other/d", b"") == found[-1]


def test_several_outputs_in_a_row(tmp_path):
    """A file can contain several outputs of etcdctl."""
    path = tmp_path / "dump.json"
    path.write_bytes(etcdctl_json(OBJECTS) + b"\n" + etcdctl_json(OBJECTS))

    assert 6 == len(read(path))


def test_outputs_without_objects(tmp_path):
    """An output without objects is complete."""
    empty = b'{"header":{"revision":9}}\n'
    path = tmp_path / "dump.json"
    path.write_bytes(empty + etcdctl_json(OBJECTS) + empty)

    assert 3 == len(read(path))


def test_as_other_tools_print_it(tmp_path):
    """An output that was indented or sorted by another tool is read as well."""
    path = tmp_path / "dump.json"
    for style in ({"indent": 4}, {"sort_keys": True}, {"separators": (",", ":")}):
        path.write_text(json.dumps(json.loads(etcdctl_json(OBJECTS)), **style) + "\n")

        assert 3 == len(read(path))


def test_one_object(tmp_path):
    """`get` finds one object, even if it is not below the prefix."""
    path = written(tmp_path / "dump.json", OBJECTS)
    with JsonFile(path) as source:
        assert Item(b"/other/d", b"") == source.get(b"/other/d")
    with JsonFile(path) as source:
        assert source.get(b"/registry/secrets/default") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"not JSON", "is truncated or not JSON, after 0 objects"),
        (b"\x1b[2J\xff", "is truncated or not JSON"),
        (etcdctl_json(OBJECTS)[:-5], "is truncated or not JSON, after 4 objects"),
        (etcdctl_json(OBJECTS)[:900], "is truncated or not JSON, after 1 object"),
        (b"{}", "has no header with a revision"),
        (b"[]", "has no header with a revision"),
        (b"[[[[[[[[[", "is truncated or not JSON"),
        (b"[" * 1_000_000, "is truncated or not JSON"),
        (b"9" * 100_000, "is truncated or not JSON"),
        (b'{"kind":"SecretList","items":[]}', "has no header with a revision"),
        (etcdctl_json(OBJECTS) + b"{}", "has no header with a revision"),
        (etcdctl_json(OBJECTS) + etcdctl_json(OBJECTS)[:-1], "after 8 objects"),
        (etcdctl_json(OBJECTS).replace(b"}, {", b"} {", 1), "after 1 object"),
        (etcdctl_json(OBJECTS, count=[1]), "is truncated or not JSON"),
        (etcdctl_json(OBJECTS, count=1e999), "is truncated or not JSON"),
        (etcdctl_json(OBJECTS, more=True), "has only 4 of 4 objects"),
        (etcdctl_json(OBJECTS, count=100), "has only 4 of 100 objects"),
        (etcdctl_json({}, count=100), "has only 0 of 100 objects"),
        (KEYS_ONLY, "has keys but no values"),
        (etcdctl_json(OBJECTS, kvs=[{"value": "YQ=="}]), "is truncated or not JSON"),
        (etcdctl_json(OBJECTS, kvs=[{"key": 1}]), "is truncated or not JSON"),
        (etcdctl_json(OBJECTS, kvs=[{"key": "L2E="}], count=None), "no values"),
        (etcdctl_json(OBJECTS, kvs=[{"key": "%%%"}]), "is truncated or not JSON"),
        (etcdctl_json(OBJECTS, kvs=[{"key": "\u00fc"}]), "is truncated or not JSON"),
        (etcdctl_json(OBJECTS, header={"revision": "x"}), "is truncated or not JSON"),
    ],
)  # fmt: skip
def test_what_is_not_all_there(text, words, tmp_path):
    """A file that is truncated, limited or something else is an error."""
    path = tmp_path / "dump.json"
    path.write_bytes(text)

    with pytest.raises(EtcdError) as caught:
        read(path, prefix=b"")

    assert words in str(caught.value)
    assert "`etcdctl get --prefix / -w json`" in caught.value.hint


def test_gzip(tmp_path):
    """A file that is compressed is named as such, with the command that reads it."""
    path = tmp_path / "dump.json.gz"
    path.write_bytes(gzip.compress(etcdctl_json(OBJECTS)))

    with pytest.raises(EtcdError, match=r"dump\.json\.gz is compressed with gzip") as (
        caught
    ):
        read(path)

    assert "zcat FILE | hsm-kms etcd scan --from-json -" in caught.value.hint


@given(st.binary(max_size=300))
def test_any_bytes(tmp_path_factory, data):
    """Any file gives objects or an EtcdError."""
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(data)
    with pytest.raises(EtcdError):
        read(path, prefix=b"")


def test_no_file(tmp_path):
    """A missing file is named in the error."""
    with pytest.raises(EtcdError, match=r"none\.json cannot be read: No such file"):
        read(tmp_path / "none.json")


def test_a_folder(tmp_path):
    """A path that is no file is named in the error."""
    with pytest.raises(EtcdError, match="cannot be read: Is a directory"):
        read(tmp_path)


def test_text_without_end(tmp_path, monkeypatch):
    """Reading stops with an error if no object ends, before it fills the memory."""
    monkeypatch.setattr(stream, "MAX_GAP_BYTES", MIB)
    path = tmp_path / "endless.json"
    path.write_bytes(b'{"header":"' + b"x" * 3 * MIB)

    with pytest.raises(EtcdError, match="has no object in 1 MiB"):
        read(path)


def test_long_values(tmp_path):
    """Values of the largest size that etcd accepts are read one at a time."""
    held = {f"/registry/secrets/n/{n}": os.urandom(MIB) for n in range(40)}
    path = written(tmp_path / "dump.json", held)
    del held
    with JsonFile(path) as source:
        tracemalloc.start()
        try:
            count = sum(len(item.value) == MIB for item in source)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert 40 == count
    assert 12 * MIB > peak


def peak_of_scan(objects: int) -> tuple[dict, int]:
    """Pipe so many objects into `etcd scan`; return output and peak memory in KiB."""
    command = [*HSM_KMS, "etcd", "scan"]
    process = subprocess.Popen(
        [*command, "--from-json", "-", "-o", "json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    head, rest = etcdctl_json({"/registry/secrets/n/00000000": v2()}).split(b'"kvs": [')
    pair, tail = rest.split(b"]")
    number = json.loads(pair)["key"].encode()
    with process.stdin as pipe:
        pipe.write(head + b'"kvs": [' + pair)
        for start in range(1, objects, 500):
            batch = b"," + pair.replace(number, number[:-8] + b"%08d")
            pipe.write(
                b"".join(batch % n for n in range(start, min(start + 500, objects)))
            )
        pipe.write(b"]" + tail.replace(b"1", b"%d" % objects))
    answer = json.loads(process.stdout.read())
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert 0 == process.returncode
    return answer, usage.ru_maxrss


def test_many_objects_in_bounded_memory():
    """The memory of a scan does not grow with the number of objects."""
    count = examples(20_000, 100_000)
    kept = 200  # bytes; an object with its key and its value takes twice that
    few, small = peak_of_scan(1)
    many, large = peak_of_scan(count)

    assert (1, count) == (few["objects"], many["objects"])
    assert {KEY_ID: count} == many["keys"]
    assert count * kept / 1024 > large - small


def test_scan(tmp_path):
    """A JSON file can be scanned like any other source."""
    with JsonFile(written(tmp_path / "dump.json", OBJECTS)) as source:
        tally = scan(source)

    assert (3, 2, 0) == (tally.total, tally.of_key(KEY_ID), tally.unencrypted)
