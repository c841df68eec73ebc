"""Print what `hsm-kms etcd scan` and `show` found.

Everything from etcd goes through `printable`, or through JSON, which escapes it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import click

from hsm_kms.cli.columns import aligned
from hsm_kms.etcd.resources import resource_of
from hsm_kms.etcd.text import count_of, printable, text_of
from hsm_kms.etcd.values import Provider, Stored, explain
from hsm_kms.wrapping.record import Algorithm, Kind, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hsm_kms.etcd.source import Item, Source
    from hsm_kms.etcd.tally import Counted, Tally

_UNENCRYPTED: Final = "unencrypted"
_CELL_CHARS: Final = 64
_RESOURCES_NAMED: Final = 5
_HEADINGS: Final = ("OBJECTS", "RESOURCE", "PROVIDER", "NAME", "KEY_ID", "WRAPPED BY")
_ALGORITHMS: Final = {
    Algorithm.AES_256_GCM: "AES-256-GCM",
    Algorithm.AES_256_CBC_HMAC_SHA256: "AES-256-CBC and HMAC-SHA-256",
}
_BY_KEY: Final = frozenset({Provider.AESCBC, Provider.AESGCM, Provider.SECRETBOX})


def print_tally(tally: Tally, source: Source, *, everything: bool) -> None:
    """Print the tables of a scan.

    Args:
        tally: The counts.
        source: The source that was read.
        everything: List the resources that may be unencrypted row by row.
    """
    click.echo(
        f"{count_of(tally.total)} below {printable(text_of(source.prefix))} in "
        f"{printable(source.name)}, revision {source.revision}"
    )
    rows = tally.rows()
    plain = [] if everything else [each for each in rows if _is_plain(each)]
    listed = rows[: len(rows) - len(plain)]
    if listed:
        click.echo()
        _print_table(_HEADINGS, [(_cells(each), _detail(each)) for each in listed])
    if plain:
        click.echo(f"\n{_in_short(plain)}")
    if tally.others:
        click.echo(f"\n{count_of(tally.others)} in too many ways to list them")
    keys = tally.keys()
    if keys:
        click.echo()
        cells = [
            ((f"{count:,}", printable(key, _CELL_CHARS)), "")
            for key, count in keys.items()
        ]
        _print_table(("OBJECTS", "UNDER KEY"), cells)


def tally_as_json(tally: Tally, source: Source) -> dict[str, Any]:
    """Return the counts of a scan for JSON."""
    return {
        "source": source.name,
        "prefix": text_of(source.prefix),
        "revision": source.revision,
        "objects": tally.total,
        "unencrypted": tally.unencrypted,
        "unreadable": tally.unreadable,
        "others": tally.others,
        "rows": [_row_as_json(each) for each in tally.rows()],
        "keys": tally.keys(),
    }


def _row_as_json(counted: Counted) -> dict[str, Any]:
    row = counted.row
    return {
        "objects": counted.objects,
        "resource": row.resource,
        "provider": str(row.provider),
        "version": row.version,
        "name": row.name,
        "key_id": row.key_id,
        "kind": row.kind,
        "problem": row.problem,
        "exposed": counted.exposed,
        "example": text_of(counted.example),
    }


def _is_plain(counted: Counted) -> bool:
    """Return True if these objects are unencrypted and may be."""
    return counted.row.provider is Provider.IDENTITY and not counted.exposed


def _cells(counted: Counted) -> tuple[str, ...]:
    row = counted.row
    unencrypted = row.provider is Provider.IDENTITY
    return (
        f"{counted.objects:,}",
        printable(row.resource, _CELL_CHARS),
        _UNENCRYPTED if unencrypted else str(row.provider),
        printable(row.name, _CELL_CHARS),
        printable(row.key_id or "", _CELL_CHARS),
        row.kind,
    )


def _detail(counted: Counted) -> str:
    """Return the line below a row that needs attention, or ""."""
    if not counted.row.problem and not counted.exposed:
        return ""
    problem = f"{counted.row.problem}; " if counted.row.problem else ""
    return f"{problem}such as {printable(text_of(counted.example))}"


def _print_table(
    headings: Sequence[str], rows: Sequence[tuple[Sequence[str], str]]
) -> None:
    """Print cells in columns, the first right-aligned, details below their rows."""
    whole = [headings, *(cells for cells, _ in rows)]
    width = max(len(first) for first, *_ in whole)
    lines = aligned([(first.rjust(width), *others) for first, *others in whole])
    details = ["", *(detail for _, detail in rows)]
    for line, detail in zip(lines, details, strict=True):
        click.echo(line)
        if detail:
            click.echo(f"{' ' * width}  {detail}")


def _in_short(plain: Iterable[Counted]) -> str:
    """Sum up in one line the objects that may be unencrypted."""
    by_resource: Counter[str] = Counter()
    for each in plain:
        by_resource[each.row.resource] += each.objects
    most_first = sorted(by_resource.items(), key=lambda each: (-each[1], each[0]))
    named = [
        f"{printable(resource, _CELL_CHARS)} {count:,}"
        for resource, count in most_first[:_RESOURCES_NAMED]
    ]
    more = len(by_resource) - len(named)
    if more:
        named.append(f"{more} more resources" if more > 1 else "1 more resource")
    unencrypted = count_of(by_resource.total(), "unencrypted object")
    return f"{unencrypted} of resources of which none is encrypted: {', '.join(named)}"


def item_as_json(item: Item, prefix: str) -> dict[str, Any]:
    """Return everything known about one object, for JSON."""
    key = {
        "key": text_of(item.key),
        "resource": resource_of(item.key, prefix.encode("utf-8", "surrogateescape")),
        "bytes": len(item.value),
    }
    return key | value_as_json(explain(item.value))


def value_as_json(stored: Stored) -> dict[str, Any]:
    """Return everything known about one value, for JSON, without empty entries."""
    known = {
        "provider": str(stored.provider),
        "version": stored.version,
        "name": stored.name,
        "key_id": stored.key_id,
        "problem": stored.problem,
        "key_id_in_record": stored.other_key_id,
        "source": stored.source,
        "wrapped_bytes": stored.wrapped and len(stored.wrapped),
        "data_bytes": stored.data_bytes,
        "annotations": list(stored.annotations),
        "record": stored.record and _record_as_json(stored.record),
        "decrypted_by": _decrypted_by(stored),
    }
    return {name: value for name, value in known.items() if value not in (None, "", [])}


def _record_as_json(record: Record) -> dict[str, Any]:
    header = record.header
    known: dict[str, Any] = {
        "kind": header.kind.name.lower().replace("_", " "),
        "algorithm": _ALGORITHMS[header.algorithm],
        "iv_bytes": len(record.iv),
        "ciphertext_bytes": len(record.ciphertext),
    }
    if header.kind is Kind.DEK_BY_LOCAL_KEK:
        nested = Record.decode(
            header.nested, kinds=frozenset({Kind.LOCAL_KEK_BY_TOKEN})
        )
        known["local_kek"] = _record_as_json(nested)
    return known


def _decrypted_by(stored: Stored) -> str:
    """Return which key decrypts the value, in words; "" if that is unknown."""
    if stored.provider is Provider.IDENTITY:
        return "nothing: anyone who can read etcd can read it"
    if stored.record:
        key = f"the key {stored.key_id} on the token"
        local = stored.record.header.kind is Kind.DEK_BY_LOCAL_KEK
        wrapped = f"a local KEK, which {key} decrypts" if local else key
        return f"{wrapped}, with the scope it was encrypted with (not stored)"
    if stored.provider in _BY_KEY:
        return "the key of that name in the EncryptionConfiguration"
    if stored.provider in {Provider.KMS_V1, Provider.KMS_V2} and not stored.problem:
        return "the KMS plugin of that name; hsm-kms did not make the record"
    return ""


def print_value(shown: dict[str, Any], indent: str = "") -> None:
    """Print what is known about a value or an object as text.

    Args:
        shown: The result of `value_as_json` or `item_as_json`.
        indent: Text before each line.
    """
    for name, value in shown.items():
        label = f"{indent}{name}:"
        if isinstance(value, dict):
            click.echo(label)
            print_value(value, indent + "  ")
        elif isinstance(value, list):
            click.echo(f"{label} {printable(', '.join(value))}")
        else:
            click.echo(f"{label} {printable(str(value), 300)}")
