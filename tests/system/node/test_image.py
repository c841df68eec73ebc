"""What is in the image, and what is not."""

from __future__ import annotations

import json
import re
import stat
import sys
import tarfile

import pytest

from hsm_kms import __version__
from tests.system.node.buildah import call
from tests.system.node.images import EPOCH, ROOT

SBOM = "usr/share/hsm-kms/hsm-kms.cdx.json"
PACKAGES = "opt/hsm-kms/lib/python3*/site-packages"


def found(root, pattern):
    """Return the paths below a root that match a pattern."""
    return sorted(str(path.relative_to(root)) for path in root.glob(pattern))


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def python_packages(root):
    """Return name → version of what is installed, from the names of the folders."""
    return {
        normal(name): version
        for folder in root.glob(f"{PACKAGES}/*.dist-info")
        for name, version in [folder.name.removesuffix(".dist-info").split("-")]
    }


def debian_packages(root):
    """Return name → version of what dpkg has installed, from its own database."""
    paragraphs = (root / "var/lib/dpkg/status").read_text().split("\n\n")
    fields = [
        dict(re.findall(r"^(Package|Status|Version): (.*)$", each, re.MULTILINE))
        for each in paragraphs
        if each.strip()
    ]
    return {
        each["Package"]: each["Version"]
        for each in fields
        if each["Status"].endswith(" installed")
    }


def locked():
    """Return name → version in requirements/run.txt."""
    text = (ROOT / "requirements" / "run.txt").read_text()
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def test_nothing_of_the_build(unpacked):
    """No pip, no build tool, no compiler, no cache, no package list, no log is left."""
    root = unpacked.root
    left = [
        path
        for pattern in (
            "**/pip",
            "**/ensurepip",
            "**/hatchling*",
            "**/site-packages/setuptools",
            "usr/bin/*gcc*",
            "usr/bin/pip*",
            "build",
            "src",
            "wheel",
            "mnt/*",
            "tmp/*",
            "var/tmp/*",
            "root/.cache",
            "var/cache/apt/**/*.deb",
            "var/cache/apt/*.bin",
            "var/lib/apt/lists/*",
        )
        for path in found(root, pattern)
    ]
    logs = [path for path in (root / "var/log").rglob("*") if path.is_file()]

    assert [] == left
    assert [] == logs


def test_nothing_of_the_machine(unpacked):
    """Of the secrets of the build, nothing is left: no setting, no mount point."""
    root = unpacked.root

    assert [] == found(root, "etc/pip.conf") + found(root, "run/secrets")
    assert [] == found(root, "etc/apt/apt.conf.d/99build")
    for name in ("etc/resolv.conf", "etc/hosts", "etc/hostname"):  # mounted over
        assert not (root / name).exists() or "" == (root / name).read_text(), name
    assert "/run/secrets" not in json.dumps(unpacked.config)


def test_one_layer(unpacked):
    """What the build removed is in no layer that somebody pulls."""
    assert 1 == unpacked.layers


def test_no_file_lends_rights(image):
    """No file and no folder is setuid or setgid, and no file has capabilities."""
    with tarfile.open(image.archive) as archive:
        (manifest,) = json.load(archive.extractfile("manifest.json"))
        (layer,) = manifest["Layers"]
        with tarfile.open(fileobj=archive.extractfile(layer)) as files:
            members = files.getmembers()
    lending = [each.name for each in members if each.mode & 0o6000]
    capable = [
        each.name
        for each in members
        if any("security.capability" in key for key in each.pax_headers)
    ]

    assert len(members) > 1000
    assert [] == lending
    assert [] == capable


def test_no_file_is_newer_than_the_epoch(image):
    """No file is newer than SOURCE_DATE_EPOCH, and neither is the image."""
    with tarfile.open(image.archive) as archive:
        (manifest,) = json.load(archive.extractfile("manifest.json"))
        (layer,) = manifest["Layers"]
        config = json.load(archive.extractfile(manifest["Config"]))
        with tarfile.open(fileobj=archive.extractfile(layer)) as files:
            newest = max(files.getmembers(), key=lambda each: each.mtime)

    assert newest.mtime <= EPOCH, newest.name
    assert "2025-06-15T15:06:40Z" == config["created"]


def test_bytecode_is_valid_whatever_the_times(unpacked):
    """Bytecode is compared with its source, so that no tool makes it stale."""
    compiled = [
        path
        for folder in ("opt/hsm-kms/lib", "usr/lib/python3*", "usr/share/python3")
        for path in unpacked.root.glob(f"{folder}/**/*.pyc")
    ]
    by_time = [path for path in compiled if path.read_bytes()[4] != 0b11]  # PEP 552

    assert len(compiled) > 500
    assert [] == by_time


def test_user(unpacked):
    """The image runs as 10001, which has a name and owns its folders.

    A named volume takes over the owner of the folder that it is mounted on.
    """
    names = (unpacked.root / "etc/passwd").read_text()

    assert "10001:10001" == unpacked.config["config"]["User"]
    assert "hsm-kms:x:10001:10001:" in names
    for folder in ("run/hsm-kms", "var/lib/hsm-kms"):
        status = (unpacked.root / folder).stat()
        assert (10001, 10001) == (status.st_uid, status.st_gid)
        assert 0o700 == stat.S_IMODE(status.st_mode)


def test_only_root_can_change_the_program(unpacked):
    """Every file but the folders of the state belongs to root, and only root writes."""
    folders = {"hsm-kms", "tmp", "lock", "partial"}
    others = []
    for path in unpacked.root.rglob("*"):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode) or path.name in folders:
            continue
        if status.st_uid or (status.st_mode & stat.S_IWOTH and path.is_file()):
            others.append(str(path.relative_to(unpacked.root)))

    assert [] == others


def test_labels(unpacked):
    """The labels of the OCI say what the image is, which version, and on which base."""
    prefix = "org.opencontainers.image."
    labels = {
        key.removeprefix(prefix): value
        for key, value in unpacked.config["config"]["Labels"].items()
        if key.startswith(prefix)
    }

    assert __version__ == labels["version"]
    assert "hsm-kms" == labels["title"]
    assert "Apache-2.0" == labels["licenses"]
    assert labels["base.name"].startswith("localhost/debian:")
    assert labels["description"]


def test_python_packages_are_the_locked_ones(unpacked):
    """The image has the packages of requirements/run.txt, and hsm-kms."""
    locks = {normal(name): version for name, version in locked().items()}

    assert locks | {"hsm-kms": __version__} == python_packages(unpacked.root)


def test_wheels_for_arm64(unpacked, directory):
    """Every locked package has a wheel for arm64 and the image's Python, as locked."""
    (python,) = (unpacked.root / "opt/hsm-kms/lib").glob("python3.*")
    tag = python.name.removeprefix("python").replace(".", "")
    options = [f"--python-version={tag}", f"--abi=cp{tag}", "--implementation=cp"]
    options += ["--abi=abi3", "--abi=none", "--only-binary=:all:", "--no-deps"]
    options += [f"--platform=manylinux{each}_aarch64" for each in ("2014", "_2_28")]
    options += ["--require-hashes", f"--requirement={ROOT / 'requirements/run.txt'}"]
    download = [sys.executable, "-m", "pip", "download", "--quiet", *options]
    call([*download, f"--dest={directory}"])

    assert len(locked()) == len(list(directory.glob("*.whl")))


@pytest.mark.parametrize("kind", ["runtime", "dev"])
def test_sbom_is_what_is_installed(request, kind):
    """The SBOM lists exactly the packages of Python and Debian that are installed."""
    image = request.getfixturevalue("image" if kind == "runtime" else "dev_image")
    unpacked = request.getfixturevalue(
        "unpacked" if kind == "runtime" else "unpacked_dev"
    )
    sbom = json.loads((unpacked.root / SBOM).read_text())
    listed = {"pypi": {}, "deb": {}}
    for component in sbom["components"]:
        if purl := component.get("purl"):
            kind_of_package = purl.removeprefix("pkg:").partition("/")[0]
            listed[kind_of_package][component["name"]] = component["version"]

    assert sbom == json.loads(image.sbom.read_text())
    assert debian_packages(unpacked.root) == listed["deb"]
    assert python_packages(unpacked.root) == listed["pypi"] | {"hsm-kms": __version__}
    assert __version__ == sbom["metadata"]["component"]["version"]
    assert ("softhsm2" in listed["deb"]) == (kind == "dev")


def test_sbom_names_each_component_once(unpacked):
    """Each component has a package URL of its own, and the product depends on all."""
    sbom = json.loads((unpacked.root / SBOM).read_text())
    references = [each["bom-ref"] for each in sbom["components"]]
    licensed = [each for each in sbom["components"] if "licenses" in each]

    assert ("CycloneDX", "1.6") == (sbom["bomFormat"], sbom["specVersion"])
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", sbom["serialNumber"])
    assert len(references) == len(set(references))
    assert [{"ref": "hsm-kms", "dependsOn": references}] == sbom["dependencies"]
    assert len(locked()) - 3 <= len(licensed)
