"""What `hsm-kms etcd scan` and `show` print.

Everything from etcd goes through `printable`, or through JSON, which escapes it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import click

from hsm_kms.etcd.resources import resource_of
from hsm_kms.etcd.text import printable, text_of
from hsm_kms.etcd.values import Provider, Stored, explain
from hsm_kms.wrapping.record import Algorithm, Kind, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hsm_kms.etcd.source import Item, Source
    from hsm_kms.etcd.tally import Counted, Tally

_IN_CLEAR: Final = "in clear"
_CELL_CHARS: Final = 64
_RESOURCES_NAMED: Final = 5
_HEADINGS: Final = ("OBJECTS", "RESOURCE", "PROVIDER", "NAME", "KEY_ID", "WRAPPED BY")
_ALGORITHMS: Final = {
    Algorithm.AES_256_GCM: "AES-256-GCM",
    Algorithm.AES_256_CBC_HMAC_SHA256: "AES-256-CBC and HMAC-SHA-256",
}
_BY_KEY: Final = frozenset({Provider.AESCBC, Provider.AESGCM, Provider.SECRETBOX})


def print_tally(tally: Tally, source: Source, *, everything: bool) -> None:
    """The tables of a scan.

    Args:
        tally: What was counted.
        source: Where.
        everything: Also what nobody wants encrypted, row by row.
    """
    click.echo(
        f"{_objects(tally.total)} below {printable(text_of(source.prefix))} in "
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
        click.echo(f"\n{_objects(tally.others)} in too many ways to list them")
    keys = tally.keys()
    if keys:
        click.echo()
        cells = [
            ((f"{count:,}", printable(key, _CELL_CHARS)), "")
            for key, count in keys.items()
        ]
        _print_table(("OBJECTS", "UNDER KEY"), cells)


def tally_as_json(tally: Tally, source: Source) -> dict[str, Any]:
    """The same for scripts."""
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
    """Whether these objects are in clear and may be."""
    return counted.row.provider is Provider.IDENTITY and not counted.exposed


def _cells(counted: Counted) -> tuple[str, ...]:
    row = counted.row
    in_clear = row.provider is Provider.IDENTITY
    return (
        f"{counted.objects:,}",
        printable(row.resource, _CELL_CHARS),
        _IN_CLEAR if in_clear else str(row.provider),
        printable(row.name, _CELL_CHARS),
        printable(row.key_id or "", _CELL_CHARS),
        row.kind,
    )


def _detail(counted: Counted) -> str:
    """A second line for what somebody should look at."""
    if not counted.row.problem and not counted.exposed:
        return ""
    problem = f"{counted.row.problem}; " if counted.row.problem else ""
    return f"{problem}such as {printable(text_of(counted.example))}"


def _print_table(
    headings: Sequence[str], rows: Sequence[tuple[Sequence[str], str]]
) -> None:
    """Cells in columns, the first to the right; what is said of a row below it."""
    columns = zip(headings, *(cells for cells, _ in rows), strict=True)
    widths = [max(map(len, column)) for column in columns]
    for cells, detail in [(headings, ""), *rows]:
        first, *others = zip(cells, widths, strict=True)
        words = [
            first[0].rjust(first[1]),
            *(cell.ljust(width) for cell, width in others),
        ]
        click.echo("  ".join(words).rstrip())
        if detail:
            click.echo(f"{' ' * widths[0]}  {detail}")


def _in_short(plain: Iterable[Counted]) -> str:
    """What may be in clear, in a line."""
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
    return (
        f"{_objects(by_resource.total())} in clear of resources of which none is "
        f"encrypted: {', '.join(named)}"
    )


def item_as_json(item: Item, prefix: str) -> dict[str, Any]:
    """What can be told of one object."""
    key = {
        "key": text_of(item.key),
        "resource": resource_of(item.key, prefix.encode("utf-8", "surrogateescape")),
        "bytes": len(item.value),
    }
    return key | value_as_json(explain(item.value))


def value_as_json(stored: Stored) -> dict[str, Any]:
    """What can be told of one value; what does not apply is left out."""
    told = {
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
        "opened_by": _opened_by(stored),
    }
    return {name: value for name, value in told.items() if value not in (None, "", [])}


def _record_as_json(record: Record) -> dict[str, Any]:
    header = record.header
    told: dict[str, Any] = {
        "kind": header.kind.name.lower().replace("_", " "),
        "algorithm": _ALGORITHMS[header.algorithm],
        "iv_bytes": len(record.iv),
        "ciphertext_bytes": len(record.ciphertext),
    }
    if header.kind is Kind.DEK_BY_LOCAL_KEK:
        nested = Record.decode(
            header.nested, kinds=frozenset({Kind.LOCAL_KEK_BY_TOKEN})
        )
        told["local_kek"] = _record_as_json(nested)
    return told


def _opened_by(stored: Stored) -> str:
    """Which key it takes to read the object, in words."""
    if stored.provider is Provider.IDENTITY:
        return "nothing: whoever reads etcd reads it"
    if stored.record:
        key = f"the key {stored.key_id} on the token"
        local = stored.record.header.kind is Kind.DEK_BY_LOCAL_KEK
        wrapped = f"a local KEK, which {key} opens" if local else key
        return f"{wrapped}, under the scope it was made with (not stored)"
    if stored.provider in _BY_KEY:
        return "the key of that name in the EncryptionConfiguration"
    if stored.provider in {Provider.KMS_V1, Provider.KMS_V2} and not stored.problem:
        return "the KMS plugin of that name; the record is not one of hsm-kms"
    return ""


def print_value(shown: dict[str, Any], indent: str = "") -> None:
    """The same for people.

    Args:
        shown: What `value_as_json` or `item_as_json` made.
        indent: Before each line.
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


def _objects(count: int) -> str:
    return "1 object" if count == 1 else f"{count:,} objects"
