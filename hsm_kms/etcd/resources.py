"""Find out to which resource an etcd key belongs, named as kubectl names it."""

from __future__ import annotations

from typing import Final

from hsm_kms.etcd.text import text_of

CORE: Final = frozenset(
    {
        *("configmaps", "endpoints", "events", "limitranges", "namespaces", "nodes"),
        *("persistentvolumeclaims", "persistentvolumes", "pods", "podtemplates"),
        *("replicationcontrollers", "resourcequotas", "secrets", "serviceaccounts"),
        "services",
    }
)
"""Resources of the core group that are stored; their names have no group."""

_MAX_KEY_BYTES: Final = 1024  # the rest of the key is ignored: names are far shorter
_MAX_PART_CHARS: Final = 253  # a group, or a name
_RENAMED: Final = {
    "minions": "nodes",
    "controllers": "replicationcontrollers",
    "ingress": "ingresses",
}
_REGISTRY: Final = b"/registry/"
_SERVICES: Final = {"specs": "services", "endpoints": "endpoints"}
_BUILT_IN: Final = ".k8s.io"  # end of the groups of Kubernetes that have a dot


def resource_of(key: bytes, prefix: bytes) -> str:
    """Return the resource that a key belongs to.

    A built-in resource comes right after the prefix (/registry/secrets/...), a resource
    of an added API group after the name of its group (/registry/example.com/widgets/),
    and an aggregated API server puts its own prefix before both.

    Args:
        key: The key of an object.
        prefix: The prefix that is read, such as /registry/ or /registry/secrets/.

    Returns:
        A name such as "secrets" or "widgets.example.com". It is as hostile as etcd.
    """
    path = text_of(key.removeprefix(_root(key, prefix))[:_MAX_KEY_BYTES])
    parts = [part[:_MAX_PART_CHARS] for part in path.split("/") if part] or [""]
    groups = 0
    while groups < len(parts) - 1 and "." in parts[groups]:
        groups += 1
    resource = parts[groups]
    if groups:
        return f"{resource}.{parts[groups - 1]}"
    if resource == "services" and len(parts) > 1:
        return _SERVICES.get(parts[1], resource)
    return _RENAMED.get(resource, resource)


def stored_names(resource: str) -> frozenset[str]:
    """Return what `resource_of` may return for a resource.

    The key of a built-in resource does not contain its group: an object of
    deployments.apps is stored as /registry/deployments/...

    Args:
        resource: Its name as in an EncryptionConfiguration, such as "secrets",
            "deployments.apps" or "widgets.example.com".
    """
    name, _, group = resource.partition(".")
    built_in = "." not in group or group.endswith(_BUILT_IN)
    return frozenset({resource, name} if built_in else {resource})


def _root(key: bytes, prefix: bytes) -> bytes:
    """Return what the API server puts before each key: its --etcd-prefix and a slash.

    The --etcd-prefix is assumed to have one part, unless it ends in /registry.
    """
    before, registry, _ = prefix.partition(_REGISTRY)
    if registry:
        return before + registry
    longest = prefix if prefix.count(b"/") > 1 else key
    end = longest.find(b"/", 1) + 1
    return longest[:end]
