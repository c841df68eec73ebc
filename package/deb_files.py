"""Install what the Debian package has besides its virtual environment."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from package import man
from package.venv import PLACE, PROGRAMS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[1]
DOCUMENTS: Final = "usr/share/doc/hsm-kms"
SBOM: Final = f"{DOCUMENTS}/hsm-kms.cdx.json"
_MANIFESTS: Final = ROOT / "manifests"
# Files of manifests/ by the place where the guides install them; here they lie below
# /usr/lib, and those of /etc come before them.
_UNITS: Final = {
    "systemd/hsm-kms.service": "systemd/system/hsm-kms.service",
    "systemd/sysusers.d/hsm-kms.conf": "sysusers.d/hsm-kms.conf",
    "tmpfiles.d/hsm-kms.conf": "tmpfiles.d/hsm-kms.conf",
}
_COMPLETIONS: Final = {
    "bash": "bash-completion/completions/hsm-kms",
    "zsh": "zsh/vendor-completions/_hsm-kms",
    "fish": "fish/vendor_completions.d/hsm-kms.fish",
}
_COPYRIGHT: Final = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: hsm-kms

Files: *
Copyright: 2026 the authors of hsm-kms
License: Apache-2.0
Comment: The Python packages in /opt/hsm-kms come from their wheels, unchanged. Their
 licences, whose texts lie beside them in *.dist-info/licenses:
"""
_APACHE: Final = """\

License: Apache-2.0
 On Debian systems, the text is in /usr/share/common-licenses/Apache-2.0.
"""


def install(tree: Path, python: Path, version: str, maintainer: str) -> None:
    """Install units, programs, manual pages, completions and documents.

    Args:
        tree: The root file system of the package.
        python: The Python of the environment in it.
        version: The version of the package.
        maintainer: Name and address.
    """
    for source, place in _UNITS.items():
        _write(tree, f"usr/lib/{place}", _as_packaged(source, place))
    (tree / "usr/bin").mkdir()
    for name in PROGRAMS:
        (tree / "usr/bin" / name).symlink_to(f"/{PLACE}/bin/{name}")
    for name, text in man.pages():
        _write_compressed(tree, f"usr/share/man/man1/{name}.gz", text)
    for shell, place in _COMPLETIONS.items():
        command = (python, "-I", "-B", "-m", "hsm_kms", "completion", shell)
        _write(tree, f"usr/share/{place}", _output(*command))
    overrides = (ROOT / "package/debian/lintian-overrides").read_text()
    _write(tree, "usr/share/lintian/overrides/hsm-kms", overrides)
    _install_documents(tree)
    changes = _changelog(version, maintainer)
    _write_compressed(tree, f"{DOCUMENTS}/changelog.Debian.gz", changes)
    sbom = tree / SBOM
    _output(python, "-I", "-B", ROOT / "image/sbom.py", sbom, "application")
    _write(tree, f"{DOCUMENTS}/copyright", _copyright(sbom))


def _as_packaged(source: str, place: str) -> str:
    text = (_MANIFESTS / source).read_text()
    return text.replace(f"/etc/{place}", f"/usr/lib/{place}", 1)


def _install_documents(tree: Path) -> None:
    folder = tree / DOCUMENTS
    shutil.copytree(ROOT / "docs", folder / "docs")
    for name in ("README.md", "SECURITY.md"):
        shutil.copy(ROOT / name, folder)
    news = (ROOT / "CHANGELOG.md").read_text()
    _write_compressed(tree, f"{DOCUMENTS}/changelog.gz", news)
    (folder / "examples").mkdir()
    shutil.copy(_MANIFESTS / "config.example.yaml", folder / "examples/config.yaml")
    shutil.copytree(_MANIFESTS / "monitoring", folder / "examples/monitoring")


def _changelog(version: str, maintainer: str) -> str:
    seconds = int(os.environ["SOURCE_DATE_EPOCH"])
    date = format_datetime(datetime.fromtimestamp(seconds, UTC))
    return (
        f"hsm-kms ({version}) unstable; urgency=medium\n\n"
        f"  * {version.partition('-')[0]}; changelog.gz has the changes.\n\n"
        f" -- {maintainer}  {date}\n"
    )


def _copyright(sbom: Path) -> str:
    lines = [f" .\n {line}\n" for line in _licences(sbom)]
    return f"{_COPYRIGHT}{''.join(lines)}{_APACHE}"


def _licences(sbom: Path) -> Iterator[str]:
    for each in json.loads(sbom.read_text())["components"]:
        found = [
            licence.get("expression") or licence["license"]["name"]
            for licence in each.get("licenses", ())
        ]
        yield f"{each['name']} {each['version']}: {', '.join(found) or 'see there'}"


def _write(tree: Path, place: str, text: str) -> None:
    path = tree / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub(r"\n*\Z", "\n", text), encoding="utf-8")


def _write_compressed(tree: Path, place: str, text: str) -> None:
    path = tree / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def _output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
