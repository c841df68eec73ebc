"""Write a CycloneDX SBOM of the file system in which this program runs.

Usage: sbom.py FILE [KIND]. It lists the Python packages of the interpreter that runs
it, the packages that dpkg has installed, and the release of the operating system; with
the kind `application` in place of `container`, the Python packages alone. The same
packages and the same SOURCE_DATE_EPOCH make the same file. The format is that of
https://cyclonedx.org/docs/1.6/json/; a package URL, that of ECMA-427.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from collections.abc import Iterator

Component = dict[str, Any]

ROOT = "hsm-kms"
DPKG_FIELDS = ("Package", "Version", "Architecture", "source:Package", "source:Version")


def python_packages() -> Iterator[Component]:
    """Yield each package of this interpreter but the product itself."""
    for found in distributions():
        if found.name != ROOT:
            yield python_package(found)


def python_package(found: Distribution) -> Component:
    """Return a Python package, with the licences that its metadata name."""
    name = re.sub(r"[-_.]+", "-", found.name).lower()
    reference = f"pkg:pypi/{name}@{quote(found.version, safe=':')}"
    component = {
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": found.version,
        "purl": reference,
    }
    if licences := list(licences_of(found)):
        component["licenses"] = licences
    return component


def licences_of(found: Distribution) -> Iterator[Component]:
    """Yield the SPDX expression of a package, or the names in its classifiers."""
    if expression := found.metadata.get("License-Expression"):
        yield {"expression": expression}
        return
    for classifier in found.metadata.get_all("Classifier", []):
        if classifier.startswith("License ::"):
            yield {"license": {"name": classifier.rpartition(" :: ")[2]}}


def debian_packages(release: dict[str, str]) -> Iterator[Component]:
    """Yield each package that dpkg has installed.

    Args:
        release: The variables of os-release(5).
    """
    form = "\t".join(f"${{{name}}}" for name in DPKG_FIELDS) + "\t${db:Status-Status}\n"
    listed = subprocess.run(
        ["dpkg-query", "--show", f"--showformat={form}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for line in listed.splitlines():
        *fields, status = line.split("\t")
        if status == "installed":
            yield debian_package(dict(zip(DPKG_FIELDS, fields, strict=True)), release)


def debian_package(fields: dict[str, str], release: dict[str, str]) -> Component:
    """Return a package of dpkg; its URL names its source, which advisories name."""
    qualifiers = {
        "arch": fields["Architecture"],
        "distro": f"{release['ID']}-{release.get('VERSION_ID', 'unstable')}",
        "upstream": f"{fields['source:Package']}@{fields['source:Version']}",
    }
    name, number = fields["Package"], fields["Version"]
    reference = (
        f"pkg:deb/{release['ID']}/{quote(name)}@{quote(number, safe=':')}"
        f"?{urlencode(qualifiers, safe=':')}"
    )
    return {
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": number,
        "purl": reference,
    }


def operating_system(release: dict[str, str]) -> Component:
    """Return the release of the operating system as a component."""
    return {
        "type": "operating-system",
        "bom-ref": f"os:{release['ID']}",
        "name": release["ID"],
        "version": release.get("VERSION_ID", "unstable"),
    }


def all_components(kind: str) -> list[Component]:
    """Return what a container or an application consists of, in a fixed order."""
    found = [*python_packages()]
    if kind == "container":
        release = platform.freedesktop_os_release()
        found += [*debian_packages(release), operating_system(release)]
    return sorted(found, key=lambda each: str(each["bom-ref"]))


def sbom(kind: str) -> Component:
    """Return the whole SBOM.

    Args:
        kind: `container` or `application`.
    """
    components = all_components(kind)
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or datetime.now(UTC).timestamp())
    whole = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(seconds, UTC).isoformat(),
            "component": {
                "type": kind,
                "bom-ref": ROOT,
                "name": ROOT,
                "version": version(ROOT),
                "licenses": [{"expression": "Apache-2.0"}],
            },
        },
        "components": components,
        "dependencies": [
            {"ref": ROOT, "dependsOn": [each["bom-ref"] for each in components]}
        ],
    }
    # A serial number of its own for each content.
    content = json.dumps(whole, sort_keys=True)
    serial = uuid.uuid5(uuid.NAMESPACE_URL, content)
    return whole | {"serialNumber": f"urn:uuid:{serial}"}


if __name__ == "__main__":
    made = sbom(sys.argv[2] if len(sys.argv) > 2 else "container")  # noqa: PLR2004
    Path(sys.argv[1]).write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
