"""Records that a reader refuses before any key is touched, one rule each.

Every function yields a name, a comment and the bytes.
"""

from __future__ import annotations

from handmade import (
    CBC,
    CBC_HEAD,
    GCM,
    GOOD,
    GOOD_CBC,
    GOOD_LOCAL,
    HEAD,
    IV12,
    IV16,
    KEY_ID,
    LOCAL_HEAD,
    LOCAL_KEK,
    NESTED,
    OTHER_ID,
    cbc,
    gcm,
    lengthened,
    local,
    prefix,
)


def malformed_head():
    yield "empty", "no byte at all", b""
    for version in (0, 2, 255):
        head = prefix(1, GCM, KEY_ID, version=version)
        yield f"version-{version}", f"version {version}", gcm(head)
    for kind in (0, 5):
        yield f"kind-{kind}", f"kind {kind}", gcm(prefix(kind, GCM, KEY_ID))
    yield "kind-3-on-top", "a local KEK that is not nested", NESTED
    yield "kind-4-on-top", "a canary from outside", gcm(prefix(4, GCM, KEY_ID))
    for algorithm in (0, 3):
        head = prefix(1, algorithm, KEY_ID)
        yield f"algorithm-{algorithm}", f"algorithm {algorithm}", gcm(head)
    for name, comment, key_id in (
        ("empty", "no key_id", ""),
        ("short", "25 characters", KEY_ID[:25]),
        ("long", "27 characters", KEY_ID + "a"),
        ("upper-case", "an upper-case letter", KEY_ID.upper()),
        ("alphabet", "a 1 is not base32", "1" + KEY_ID[1:]),
        ("padding", "base32 padding", KEY_ID + "======"),
        ("unused-bits", "the two unused bits are not zero", KEY_ID[:25] + "b"),
        ("not-ascii", "a byte above 127", "\xe9" + KEY_ID[1:]),
        ("nul", "a zero byte", "\x00" + KEY_ID[1:]),
        ("newline", "a newline after it", KEY_ID + "\n"),
        ("suffix-empty", "a dot and no suffix", KEY_ID + "."),
        ("suffix-17", "a suffix of 17 characters", KEY_ID + "." + "a" * 17),
        ("suffix-upper-case", "an upper-case suffix", KEY_ID + ".A"),
        ("suffix-two", "two suffixes", KEY_ID + ".a.b"),
        ("suffix-sign", "a sign in the suffix", KEY_ID + ".a-b"),
    ):
        yield f"key-id-{name}", comment, gcm(prefix(1, GCM, key_id))
    comment = "the length of key_id runs past the end"
    yield "key-id-past-end", comment, bytes([1, 1, 1, 255]) + KEY_ID.encode()


def malformed_tail():
    yield "iv-length-missing", "nothing after key_id", HEAD
    for size in (0, 11, 17):
        record = HEAD + bytes([size]) + bytes(size) + GOOD[-48:]
        yield f"gcm-iv-{size}", f"an IV of {size} bytes", record
    for size in (12, 15, 17):
        record = CBC_HEAD + bytes([size]) + bytes(size) + GOOD_CBC[-80:]
        yield f"cbc-iv-{size}", f"an IV of {size} bytes for CBC", record
    comment = "the length of the IV runs past the end"
    yield "iv-past-end", comment, HEAD + bytes([16]) + IV12
    start = HEAD + bytes([12]) + IV12
    yield "gcm-no-ciphertext", "an IV and no more", start
    yield "gcm-tag-only", "a tag and no ciphertext", start + bytes(16)
    yield "gcm-too-long", "a plaintext of 1,025 bytes", gcm(HEAD, bytes(1025))
    start = CBC_HEAD + bytes([16]) + IV16
    yield "cbc-tag-only", "a tag and no ciphertext", start + bytes(32)
    yield "cbc-part-block", "17 bytes of ciphertext", start + bytes(17 + 32)
    yield "cbc-trailing-byte", "one byte after the end", GOOD_CBC + b"\x00"
    yield "cbc-truncated", "the last byte is missing", GOOD_CBC[:-1]
    yield "cbc-too-long", "66 blocks of ciphertext", start + bytes(66 * 16 + 32)
    long = HEAD + bytes([12]) + IV12 + bytes(1300)
    yield "longer-than-any-record", "longer than 1,246 bytes", long


def malformed_nested():
    yield "empty", "a nested length of 0", local(b"")
    yield "one-byte", "a nested length of 1", local(b"\x01")
    head = LOCAL_HEAD[: -len(NESTED)]
    yield "past-end", "the nested length runs past the end", head + NESTED[:-1]
    shorter = lengthened(GOOD_LOCAL, 4 + 26 + 1, -1)
    yield "length-less-one", "the nested length is one less than it was", shorter
    longer = lengthened(GOOD_LOCAL, 4 + 26 + 1, 1)
    yield "length-plus-one", "the nested length is one more than it was", longer
    trailing = local(NESTED + b"\x00")
    yield "trailing-byte", "one byte after the nested record", trailing
    nested = gcm(prefix(3, GCM, KEY_ID, version=2), LOCAL_KEK)
    yield "version-2", "version 2 inside", local(nested)
    for kind in (1, 4):
        nested = gcm(prefix(kind, GCM, KEY_ID), LOCAL_KEK)
        yield f"kind-{kind}", f"kind {kind} inside", local(nested)
    yield "kind-2", "a nested record inside the nested one", local(GOOD_LOCAL)
    nested = gcm(prefix(3, GCM, OTHER_ID), LOCAL_KEK)
    yield "other-key", "the nested key_id is another one", local(nested)
    nested = gcm(prefix(3, GCM, KEY_ID + ".a"), LOCAL_KEK)
    yield "other-suffix", "the nested key_id has another suffix", local(nested)
    for size in (16, 31, 33):
        nested = gcm(prefix(3, GCM, KEY_ID), bytes(size))
        yield f"kek-{size}", f"a local KEK of {size} bytes", local(nested)
    nested = cbc(prefix(3, CBC, KEY_ID), bytes(31))
    yield "cbc-kek-31", "a local KEK of 31 bytes by CBC and HMAC", local(nested)
    nested = gcm(prefix(3, GCM, KEY_ID, NESTED), LOCAL_KEK)
    yield "in-kind-3", "kind 3 with a nested record", local(nested)
    yield (
        "in-kind-1",
        "kind 1 with a nested record",
        gcm(prefix(1, GCM, KEY_ID, NESTED)),
    )
    yield "missing", "kind 2 without a nested record", gcm(prefix(2, GCM, KEY_ID))
    comment = "CBC and HMAC under a local KEK"
    yield "outer-cbc", comment, local(NESTED, algorithm=CBC, iv=IV16)
    comment = "an IV of 16 bytes under a local KEK"
    yield "outer-iv16", comment, local(NESTED, iv=IV16)
