"""Adapt the pages to mkdocs, so that their text need not know of it.

1. A page, and a file, that a page links to outside docs/ is part of the book, below
   project/, because the book does not know where the repository is.
2. What belongs to an item of a list has four blanks before it, which Python-Markdown
   requires.
3. Nothing is loaded from elsewhere: a page that would do it fails the build.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, Any, Final

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from book.marked import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

_DOCS: Final = "docs/"
_ELSEWHERE: Final = "project/"
_LINK: Final = re.compile(r"\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
_LOADED: Final = re.compile(
    r"""<(?:script|img|iframe)[^>]*\ssrc="?https?:|<link[^>]*rel="?(?:stylesheet|preconnect|icon)[^>]*href="?https?:"""
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to, and those that these link to."""
    pages = [f"{_DOCS}{each.src_uri}" for each in files.documentation_pages()]
    known = set(pages)
    while pages:
        for target in _targets(pages.pop()):
            if target in known or target.startswith(_DOCS):
                continue
            known.add(target)
            uri = f"{_ELSEWHERE}{target}"
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
            if target.endswith(".md"):
                pages.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Return the page with links into the book, and its lists indented."""
    source = _in_repository(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found.groups(default="")
        file = _resolved(source, target)
        if file is None:
            return text  # a folder without a page
        here = posixpath.dirname(page.file.src_uri)
        return f"[{text}]({posixpath.relpath(_in_book(file), here)}{anchor})"

    return "\n".join(_indented(_LINK.sub(link, markdown).splitlines()))


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Refuse a page that loads something from the network."""
    if found := _LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads {found[0]}")
    return output


def _targets(source: str) -> Iterator[str]:
    for found in _LINK.finditer((ROOT / source).read_text()):
        if target := _resolved(source, found[2]):
            yield target


def _resolved(source: str, target: str) -> str | None:
    """Return the file that a link names, below the project's folder."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if (ROOT / path).is_dir():
        path = posixpath.join(path, "README.md")
    # A link to nothing stays, so that mkdocs complains of it.
    return None if path.endswith("/README.md") and not (ROOT / path).exists() else path


def _in_repository(uri: str) -> str:
    if uri.startswith(_ELSEWHERE):
        return uri.removeprefix(_ELSEWHERE)
    return f"{_DOCS}{uri}"


def _in_book(path: str) -> str:
    if path.startswith(_DOCS):
        return path.removeprefix(_DOCS)
    return f"{_ELSEWHERE}{path}"


def _indented(lines: list[str]) -> Iterator[str]:
    """Yield the lines with four blanks where two or three follow an item's mark."""
    fence = None  # the blanks before the fence of the block
    for line in lines:
        blanks = len(line) - len(line.lstrip(" "))
        if fence is None and line.lstrip().startswith("```"):
            fence = blanks
        elif fence is not None and line.strip() == "```":
            blanks, fence = fence, None
            yield _moved(line, blanks)
            continue
        yield _moved(line, blanks if fence is None else fence)


def _moved(line: str, blanks: int) -> str:
    if blanks not in {2, 3} or not line.startswith(" " * blanks):
        return line
    return f"    {line[blanks:]}"
