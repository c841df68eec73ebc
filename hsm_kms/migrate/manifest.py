"""Make StorageVersionMigrations, with which a cluster re-encrypts on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hsm_kms.errors import HsmKmsError
from hsm_kms.migrate.resources import served_versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hsm_kms.migrate.api import Api
    from hsm_kms.migrate.resources import Resource

GROUP: Final = "storagemigration.k8s.io"
_WITH_VERSION: Final = "v1alpha1"


def served_version(api: Api) -> str | None:
    """Return the version of StorageVersionMigration that the API server prefers.

    Returns:
        The version, or None if the API server does not serve the group.

    Raises:
        HsmKmsError: The API server could not be asked.
    """
    return next(iter(served_versions(api, GROUP)), None)


def require_version(api: Api) -> str:
    """Return the version of StorageVersionMigration that the API server prefers.

    Raises:
        HsmKmsError: The API server does not serve the group, or could not be asked.
    """
    version = served_version(api)
    if version is None:
        raise HsmKmsError(
            f"this API server does not serve {GROUP}",
            hint="it does by default from Kubernetes 1.37 on; with 1.35 and 1.36, "
            "enable the feature gate StorageVersionMigrator and "
            f"--runtime-config={GROUP}/v1beta1=true; or let `hsm-kms migrate` "
            "re-encrypt the objects",
        )
    return version


def manifests(resources: Sequence[Resource], version: str) -> str:
    """Return one StorageVersionMigration for each resource, as YAML.

    Args:
        resources: The resources to migrate.
        version: Version of storagemigration.k8s.io.
    """
    import yaml  # noqa: PLC0415 - only --explain needs it

    return yaml.safe_dump_all(
        [manifest(resource, version) for resource in resources],
        sort_keys=False,
        explicit_start=True,
    )


def manifest(resource: Resource, version: str, name: str = "") -> dict[str, Any]:
    """Return a StorageVersionMigration.

    Args:
        resource: The resource to migrate.
        version: Version of storagemigration.k8s.io.
        name: Its name; "" to let the API server make one.
    """
    named = {"group": resource.group, "resource": resource.name}
    if version == _WITH_VERSION:
        named["version"] = resource.version
    return {
        "apiVersion": f"{GROUP}/{version}",
        "kind": "StorageVersionMigration",
        "metadata": {"name": name}
        if name
        else {"generateName": f"hsm-kms-{resource}-"},
        "spec": {"resource": named},
    }
