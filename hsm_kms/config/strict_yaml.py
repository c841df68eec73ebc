"""YAML read strictly, with the line of every key, and without its excerpts.

PyYAML keeps the last of two equal keys and says nothing; its messages show the
text around a fault, which may be a PIN. Both end here.
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
    """A parsed file.

    Args:
        data: What it holds; of equal keys the last.
        lines: The line of each key, counted from 1, by its path.
        twice: Path and both lines of each key that stands twice.
        not_text: Lines of keys that are not text; `data` is without them.
    """

    data: Any = None
    lines: dict[_Place, int] = field(default_factory=dict)
    twice: list[tuple[_Place, int, int]] = field(default_factory=list)
    not_text: list[int] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases, dates, or depth that exhausts the stack."""

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
        ConfigError: If it is not YAML; its place is named, its text is not.
    """
    document = Document()
    try:
        loader = _Loader(text.removeprefix("\ufeff"))
        node = loader.get_single_node()
        if node is not None:
            _walk(node, (), document)
            document.data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_sentence(error.problem_mark)]) from None
    except (yaml.YAMLError, ValueError, OverflowError):
        # A character YAML forbids, or a number too long to be one.
        raise ConfigError(["not valid YAML"]) from None
    return document


def load_yaml(text: str) -> Any:
    """Parse one YAML document in which each key stands once.

    Raises:
        ConfigError: If it is not YAML, or a key stands twice or is not text.
    """
    document = read_yaml(text)
    faults = [
        f"a key stands twice, on lines {first} and {second}"
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


def _sentence(mark: yaml.Mark | None) -> str:
    if mark is None:
        return "not valid YAML"
    return f"not valid YAML at line {mark.line + 1}, column {mark.column + 1}"
