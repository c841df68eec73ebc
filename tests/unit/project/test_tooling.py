"""Test that CI, Dependabot and pre-commit name what the project has."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FOLDERS = {"pip": "pyproject.toml", "gomod": "go.mod", "docker": "Dockerfile"}

_SIGN = {"attestations": "write", "id-token": "write"}
MAY_WRITE = {
    ("release", "provenance"): _SIGN,
    ("release", "pypi"): {"contents": "read", "id-token": "write"},
    ("release", "registry"): {**_SIGN, "packages": "write"},
    ("release", "draft"): {"contents": "write"},
}


def parsed(path):
    return yaml.safe_load(path.read_text())


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.name)
def workflow(request):
    """Return one workflow of .github/workflows."""
    return parsed(request.param)


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_actions_are_pinned(workflow):
    """Every action is pinned to the full SHA of a commit."""
    used = [step["uses"] for step in steps(workflow) if "uses" in step]

    assert used
    assert [] == [name for name in used if not re.fullmatch(r"\S+@[0-9a-f]{40}", name)]


def test_permissions(workflow):
    """A workflow has no permission; a job may read the code, or what is listed here."""
    assert {} == workflow["permissions"]
    for name, job in workflow["jobs"].items():
        allowed = MAY_WRITE.get((workflow["name"], name), {"contents": "read"})
        assert allowed == job.get("permissions", allowed), name


def test_who_may_write_runs_nothing_of_the_project(workflow):
    """A job with a permission to write neither builds nor calls make or a script."""
    for name, job in workflow["jobs"].items():
        if (workflow["name"], name) in MAY_WRITE:
            for step in job["steps"]:
                assert not re.search(r"\bmake\b|\.sh\b|\.py\b", step.get("run", ""))


def test_gate_needs_all():
    """The gate of the CI workflow needs every other job."""
    jobs = parsed(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]

    assert set(jobs) - {"gate"} == set(jobs["gate"]["needs"])


def test_matrix_is_what_the_package_supports():
    """CI tests the Python versions of the package's classifiers, and no other."""
    jobs = parsed(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    tested = jobs["python"]["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: "
    named = [c.removeprefix(prefix) for c in project["classifiers"] if prefix in c]

    assert named == tested
    assert f">={tested[0]}" == project["requires-python"]


def test_dependabot_folders():
    """Dependabot checks the folders that have files with dependencies."""
    for update in parsed(ROOT / ".github" / "dependabot.yml")["updates"]:
        file = FOLDERS.get(update["package-ecosystem"], ".github/workflows")
        for folder in update.get("directories") or [update["directory"]]:
            assert (ROOT / folder.lstrip("/") / file).exists(), folder

    modules = {
        f"/{path.parent.relative_to(ROOT)}" for path in ROOT.glob("[bt]*/**/go.mod")
    }
    assert modules == {
        folder
        for update in parsed(ROOT / ".github" / "dependabot.yml")["updates"]
        if update["package-ecosystem"] == "gomod"
        for folder in update["directories"]
    }


def test_pre_commit_is_make_lint():
    """Each tool of `make lint` is a hook of pre-commit."""
    (repository,) = parsed(ROOT / ".pre-commit-config.yaml")["repos"]
    hooks = [Path(hook["entry"]).name for hook in repository["hooks"]]
    recipe = (ROOT / "Makefile").read_text().partition("\nlint: ")[2].split("\n\n")[0]
    run = re.findall(r"\$\(BIN\)/([\w-]+(?: check| format --check)?)", recipe)

    assert "local" == repository["repo"]
    assert sorted([*run, "shellcheck"]) == sorted(hooks)
    assert "shellcheck" in recipe


def test_shell_scripts_are_linted():
    """`make lint` checks every shell script of the project."""
    scripts = {
        str(path.relative_to(ROOT))
        for folder in (
            "image",
            "package",
            "softhsm",
            "proto",
            "tests",
            ".ci",
            "manifests",
            "bench",
        )
        for path in ROOT.glob(f"{folder}/**/*")
        if path.is_file() and path.read_bytes()[:64].split(b"\n")[0].endswith((b"sh",))
    }
    listed = re.search(
        r"^SHELL_SCRIPTS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    patterns = re.sub(r"\$\(wildcard ([^)]*)\)", r"\1", listed[1]).split()
    linted = {
        str(path.relative_to(ROOT)) for each in patterns for path in ROOT.glob(each)
    }

    assert scripts - linted == set()


def test_ci_runs_every_part():
    """.ci/run without arguments runs each part that it defines, as its comment says."""
    text = (ROOT / ".ci/run").read_text()
    defined = re.findall(r"^part_(\w+)\(\)", text, re.MULTILINE)
    runs = re.search(r"^parts=\((.+)\)$", text, re.MULTILINE)[1].split()
    told = re.search(r"some are named:\n# +(.+)$", text, re.MULTILINE)[1].split()

    assert sorted(defined) == sorted(runs)
    assert runs == told
