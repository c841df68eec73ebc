"""Writes the vectors again, from docs/spec.md alone.

Usage: generate.py DIRECTORY
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

from handmade import (
    CBC,
    CBC_HEAD,
    DEK,
    GCM,
    GOOD,
    GOOD_CBC,
    GOOD_LOCAL,
    HEAD,
    HMAC_KEY,
    IV16,
    KEK,
    KEY_ID,
    LOCAL_HEAD,
    LOCAL_IV,
    LOCAL_KEK,
    NESTED,
    OTHER_ID,
    OTHER_KEK,
    PAIR_ID,
    SCOPE,
    cbc,
    cbc_padded,
    fingerprint,
    flipped,
    from_cka_id,
    gcm,
    lengthened,
    local,
    prefix,
)
from malformed import malformed_head, malformed_nested, malformed_tail


def good():
    """Name, comment, record, and what differs from the usual fields."""
    yield "gcm-iv12", "kind 1, AES-256-GCM, the usual IV", GOOD, {}
    yield "gcm-iv16", "an IV of 16 bytes", gcm(HEAD, iv=IV16), {}
    for size in (1, 4, 1024):
        text = (DEK * 32)[:size]
        record = gcm(HEAD, text)
        comment = f"a plaintext of {size} bytes"
        yield f"gcm-plaintext-{size}", comment, record, {"plaintext": text}
    head = prefix(1, GCM, KEY_ID + ".2026a")
    yield "gcm-suffix", "a key_id with a suffix", gcm(head), {}
    head = prefix(1, GCM, KEY_ID + "." + "z" * 16)
    yield "gcm-suffix-16", "a suffix of 16 characters", gcm(head), {}
    yield "gcm-no-scope", "an empty scope", gcm(HEAD, scope=""), {"scope": ""}
    scope = "Zürich" + "x" * 57
    yield "gcm-scope-64", "64 bytes of UTF-8", gcm(HEAD, scope=scope), {"scope": scope}
    pair = {"hmac-key": HMAC_KEY}
    yield "cbc", "kind 1, AES-256-CBC and HMAC-SHA-256", GOOD_CBC, pair
    for size in (1, 15, 16, 1024):
        text = (DEK * 32)[:size]
        comment = f"a plaintext of {size} bytes, padded"
        record = cbc(CBC_HEAD, text)
        yield f"cbc-plaintext-{size}", comment, record, {**pair, "plaintext": text}
    inner = {"local-kek": LOCAL_KEK}
    yield "local", "kind 2 around kind 3", GOOD_LOCAL, inner
    nested = gcm(prefix(3, GCM, KEY_ID), LOCAL_KEK, iv=IV16)
    comment = "the nested record has an IV of 16 bytes"
    yield "local-nested-iv16", comment, local(nested), inner
    nested = cbc(prefix(3, CBC, PAIR_ID + "." + "a" * 16), LOCAL_KEK)
    head = prefix(2, GCM, PAIR_ID + "." + "a" * 16, nested)
    comment = "the nested record is CBC and HMAC; the longest header there is"
    record = gcm(head, (DEK * 32)[:1024], iv=LOCAL_IV, key=LOCAL_KEK)
    text = {"plaintext": (DEK * 32)[:1024]}
    yield "local-nested-cbc-longest", comment, record, {**inner, **pair, **text}
    canary = gcm(prefix(4, GCM, KEY_ID))
    yield "canary", "kind 4, where one is asked for", canary, {"accept": "canary"}
    canary = cbc(prefix(4, CBC, PAIR_ID))
    comment = "kind 4 by CBC and HMAC"
    yield "canary-cbc", comment, canary, {**pair, "accept": "canary"}
    comment = "kind 3, as read from inside a kind 2"
    yield "nested", comment, NESTED, {"accept": "nested", "plaintext": LOCAL_KEK}


def malformed():
    for name, comment, record in malformed_head():
        yield name, comment, record, {}
    for name, comment, record in malformed_tail():
        yield name, comment, record, {}
    for name, comment, record in malformed_nested():
        yield f"nested-{name}", comment, record, {}
    comment = "a DEK where only a canary is accepted"
    yield "canary-kind-1", comment, GOOD, {"accept": "canary"}


def not_authentic():
    at_iv = len(HEAD) + 1
    yield "gcm-tag", "one bit of the tag", flipped(GOOD, -1), {}
    yield "gcm-ciphertext", "one bit of the ciphertext", flipped(GOOD, at_iv + 12), {}
    yield "gcm-iv", "one bit of the IV", flipped(GOOD, at_iv), {}
    moved = lengthened(GOOD, at_iv - 1, 1)
    yield "gcm-iv-length", "the first byte of ciphertext taken for IV", moved, {}
    yield "gcm-truncated", "the last byte is missing", GOOD[:-1], {}
    yield "gcm-trailing-byte", "one byte after the end", GOOD + b"\x00", {}
    other = prefix(1, GCM, OTHER_ID) + GOOD[len(HEAD) :]
    yield "gcm-key-id", "the key_id of another key", other, {}
    other = prefix(1, GCM, KEY_ID + ".a") + GOOD[len(HEAD) :]
    yield "gcm-suffix", "a suffix added", other, {}
    yield "gcm-scope", "another scope", GOOD, {"scope": "prod-us"}
    yield "gcm-no-scope", "no scope", GOOD, {"scope": ""}
    yield "gcm-kek", "another KEK", GOOD, {"kek": OTHER_KEK}
    canary = flipped(GOOD, 1, 5)
    comment = "a DEK relabelled as a canary"
    yield "gcm-kind", comment, canary, {"accept": "canary"}
    relabelled = flipped(gcm(prefix(4, GCM, KEY_ID)), 1, 5)
    yield "canary-as-dek", "a canary relabelled as a DEK", relabelled, {}
    relabelled = flipped(NESTED, 1, 2)
    yield "nested-as-dek", "a local KEK relabelled as a DEK", relabelled, {}
    pair = {"hmac-key": HMAC_KEY}
    other = flipped(gcm(HEAD, iv=IV16), 2, 3)
    yield "gcm-as-cbc", "GCM relabelled as CBC and HMAC", other, pair
    at_iv = len(CBC_HEAD) + 1
    for name, at in (("mac", -1), ("ciphertext", at_iv + 16), ("iv", at_iv)):
        yield f"cbc-{name}", f"one bit of the {name}", flipped(GOOD_CBC, at), pair
    yield "cbc-scope", "another scope", GOOD_CBC, {**pair, "scope": "prod-us"}
    cut = GOOD_CBC[: at_iv + 16] + GOOD_CBC[at_iv + 32 :]
    yield "cbc-block-removed", "the first block taken away", cut, pair
    yield "cbc-hmac-key", "another HMAC key", GOOD_CBC, {"hmac-key": OTHER_KEK}
    comment = "wrong padding under a good MAC"
    for name, tail in (("zero", b"\x00"), ("17", b"\x11"), ("uneven", b"\x01\x02")):
        record = cbc_padded(CBC_HEAD, DEK + (bytes(16) + tail)[-16:])
        yield f"cbc-padding-{name}", comment, record, pair
    empty = cbc_padded(CBC_HEAD, bytes([16]) * 16)
    yield "cbc-empty", "padding and no plaintext", empty, pair
    inner = {"local-kek": LOCAL_KEK}
    for size in (33, 47):
        nested = cbc(prefix(3, CBC, KEY_ID), bytes(size))
        comment = f"a local KEK of {size} bytes by CBC and HMAC"
        yield f"local-nested-cbc-{size}", comment, local(nested), {**inner, **pair}
    yield "local-tag", "one bit of the outer tag", flipped(GOOD_LOCAL, -1), inner
    bad = local(flipped(NESTED, -1))
    yield "local-nested-tag", "one bit of the nested tag, made anew", bad, inner
    nested = gcm(prefix(3, GCM, KEY_ID), LOCAL_KEK, iv=IV16[::-1][:12])
    swapped = prefix(2, GCM, KEY_ID, nested) + GOOD_LOCAL[len(LOCAL_HEAD) :]
    comment = "the same local KEK, wrapped anew and put in place of the old"
    yield "local-nested-swapped", comment, swapped, inner
    nested = gcm(prefix(3, GCM, KEY_ID), LOCAL_KEK, scope="prod-us")
    yield (
        "local-nested-scope",
        "the nested record has another scope",
        local(nested),
        inner,
    )
    yield "local-scope", "another scope", GOOD_LOCAL, {**inner, "scope": "prod-us"}


def fingerprints():
    for name, kek, hmac_key in (
        ("gcm", KEK, b""),
        ("gcm-other", OTHER_KEK, b""),
        ("cbc-hmac", KEK, HMAC_KEY),
        ("cbc-hmac-other", KEK, OTHER_KEK),
    ):
        fields = [("kek", kek.hex())]
        if hmac_key:
            fields.append(("hmac-key", hmac_key.hex()))
        yield name, [*fields, ("fingerprint", fingerprint(kek, hmac_key))]


def cka_ids():
    noise = bytes(range(0xE0, 0xE8))
    for name, activation in (
        ("zero", 0),
        ("usual", 1_800_000_000),
        ("after-2038", 1 << 32),
        ("last", (1 << 64) - 1),
    ):
        cka_id = b"hkms" + bytes([1]) + struct.pack(">Q", activation) + noise
        yield (
            name,
            [
                ("activation", str(activation)),
                ("random", noise.hex()),
                ("cka-id", cka_id.hex()),
                ("hmac-cka-id", (cka_id + b"h").hex()),
                ("fingerprint", from_cka_id(cka_id)),
            ],
        )


def foreign_cka_ids():
    ours = b"hkms" + bytes([1]) + bytes(8) + bytes(range(8))
    for name, cka_id in (
        ("empty", b""),
        ("one-byte", b"\x01"),
        ("short", ours[:-1]),
        ("long", ours + b"\x00"),
        ("magic", b"HKMS" + ours[4:]),
        ("version-2", b"hkms\x02" + ours[5:]),
        ("hmac-partner", ours + b"h"),
    ):
        yield name, [("cka-id", cka_id.hex()), ("fingerprint", from_cka_id(cka_id))]


def write(directory, name, expect, fields) -> None:
    lines = [f"expect: {expect}", *(f"{key}: {value}" for key, value in fields)]
    directory.mkdir(parents=True, exist_ok=True)
    text = "\n".join(line.rstrip() for line in lines) + "\n"
    (directory / f"{name}.txt").write_text(text, encoding="utf-8")


def record_fields(comment, record, changes):
    usual = {"kek": KEK, "scope": SCOPE, "plaintext": DEK}
    fields = {"comment": comment, **usual, **changes, "record": record}
    for key, value in fields.items():
        yield key, value.hex() if isinstance(value, bytes) else value


def main(directory: Path) -> None:
    for expect, vectors in (
        ("ok", good()),
        ("malformed", malformed()),
        ("not authentic", not_authentic()),
    ):
        folder = directory / "record" / expect.replace(" ", "-")
        for name, comment, record, changes in vectors:
            write(folder, name, expect, record_fields(comment, record, changes))
    for name, fields in fingerprints():
        write(directory / "fingerprint", name, "ok", fields)
    for name, fields in cka_ids():
        write(directory / "cka_id", name, "ok", fields)
    for name, fields in foreign_cka_ids():
        write(directory / "cka_id", f"foreign-{name}", "foreign", fields)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
