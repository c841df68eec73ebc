"""Put one run into the pages: `python -m bench.publish [DIRECTORY]`.

The tables go between the markers of docs/performance.md, the plots to docs/images/.
What is outside the markers is written by people, and must be true of any run.
"""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench import report, results

if TYPE_CHECKING:
    from collections.abc import Iterable

PAGE = Path("docs/performance.md")
IMAGES = Path("docs/images")
_MARKED = re.compile(r"(<!-- bench: ([\w-]+) -->\n).*?(<!-- bench end -->)", re.DOTALL)


# The section that a plot belongs to, and what the plot shows.
_PLACES = {
    "performance-streams": ("rates", "Encrypt per second over requests at once"),
    "performance-times": ("times", "times of Encrypt over requests at once"),
    "performance-latency": ("direct", "Encrypt per second over the time of a C call"),
    "performance-sessions": ("sessions", "Encrypt per second over sessions"),
    "performance-clients": ("clients", "Encrypt per second over connections"),
    "performance-keys": ("keys", "costs over keys on the ring"),
    "performance-secrets": ("secrets", "start of kube-apiserver over Secrets"),
}


def illustrated(sections: dict[str, str], drawn: Iterable[str]) -> dict[str, str]:
    """Return the sections with the plots that belong to them.

    Args:
        sections: Markdown by name.
        drawn: Names of the plots that were drawn.
    """
    more = dict(sections)
    for name in drawn:
        place, shows = _PLACES[name]
        if place in more:
            more[place] = f"![{shows}](images/{name}.svg)\n\n{more[place]}"
    return more


def published(page: str, sections: dict[str, str]) -> str:
    """Return a page with these sections between its markers.

    A section that the run does not have keeps what the page has.

    Args:
        page: The page.
        sections: Markdown by the name of its markers.
    """

    def replaced(found: re.Match[str]) -> str:
        section = sections.get(found[2])
        return found[0] if section is None else f"{found[1]}\n{section}\n{found[3]}"

    return _MARKED.sub(replaced, page)


def main() -> None:
    """Publish one run."""
    from bench import plots  # noqa: PLC0415 - matplotlib is not always installed

    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else results.OUT
    run = results.read(directory)
    sections = report.sections(run)
    with contextlib.suppress(FileNotFoundError):
        peers = results.read(directory, results.PEERS_FILE)
        sections[report.PEERS] = report.peers_table(peers)
    drawn = plots.draw(run, IMAGES)
    sections = illustrated(sections, [path.stem for path in drawn])
    PAGE.write_text(published(PAGE.read_text(), sections))
    print(*drawn, PAGE, sep="\n")


if __name__ == "__main__":
    main()
