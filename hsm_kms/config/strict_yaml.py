"""Parse YAML strictly, note the line of every key, and never quote the text.

PyYAML silently keeps the last of two equal keys, and its messages quote the text
around a fault, which may be a PIN. This module reports the first and drops the second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from hsm_kms.errors import ConfigError

_MAX_DEPTH = 16
_TEXT = "tag:yaml.org,2002:str"
_Place = tuple[str, ...]


@dataclass(slots=True)
class Document:
    """Hold a parsed file.

    Args:
        data: The content; of equal keys the last.
        lines: The line of each key, counted from 1, by the path of the key.
        twice: Path and both lines of each duplicate key.
        not_text: Lines of keys that are not text; `data` is without these keys.
    """

    data: Any = None
    lines: dict[_Place, int] = field(default_factory=dict)
    twice: list[tuple[_Place, int, int]] = field(default_factory=list)
    not_text: list[int] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """Load YAML safely, but refuse aliases, dates, and deep nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _fault(self.peek_event())  # type: ignore[no-untyped-call]
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _fault(self.peek_event())  # type: ignore[no-untyped-call]
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, exp) for tag, exp in pairs if not tag.endswith(":timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _fault(event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem_mark=event.start_mark)


def read_yaml(text: str) -> Document:
    """Parse one YAML document.

    Raises:
        ConfigError: The text is not YAML. The error gives line and column, no text.
    """
    document = Document()
    try:
        loader = _Loader(text.removeprefix("\ufeff"))
        node = loader.get_single_node()
        if node is not None:
            _walk(node, (), document)
            document.data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_message(error.problem_mark)]) from None
    except yaml.reader.ReaderError as error:
        raise ConfigError([_forbidden(text, error.position)]) from None
    except (yaml.YAMLError, ValueError, OverflowError):
        # A number that is too long.
        raise ConfigError(["not valid YAML"]) from None
    return document


def load_yaml(text: str) -> Any:
    """Return the content of one YAML document without duplicate keys.

    Raises:
        ConfigError: The text is not YAML, or a key is duplicate or not text.
    """
    document = read_yaml(text)
    faults = [
        f"duplicate key on lines {first} and {second}"
        for _, first, second in document.twice
    ]
    faults += [f"a key is not text (line {line})" for line in document.not_text]
    if faults:
        raise ConfigError(faults)
    return document.data


def _walk(node: yaml.Node, place: _Place, document: Document) -> None:
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _walk(item, (*place, str(number)), document)
    if not isinstance(node, yaml.MappingNode):
        return
    kept = []
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag != _TEXT:
            document.not_text.append(line)
            continue
        kept.append((key, value))
        inner = (*place, key.value)
        if inner in document.lines:
            document.twice.append((inner, document.lines[inner], line))
        document.lines[inner] = line
        _walk(value, inner, document)
    node.value = kept


def _forbidden(text: str, position: int) -> str:
    """Say where the character is that YAML forbids, such as a control character."""
    before = text.removeprefix("\ufeff")[:position].split("\n")
    where = f"line {len(before)}, column {len(before[-1]) + 1}"
    return f"not valid YAML at {where}: YAML forbids this character"


def _message(mark: yaml.Mark | None) -> str:
    if mark is None:
        return "not valid YAML"
    return f"not valid YAML at line {mark.line + 1}, column {mark.column + 1}"
