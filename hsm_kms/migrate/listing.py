"""List the objects of a resource page by page, and get past those that fail.

A list fails as a whole if the API server cannot read one of its objects, for example
because the key is lost under which the object is encrypted. Then:

1.  The list is continued in smaller pages, at last of one object, so that all objects
    before that object are migrated.
2.  If the object cannot be decrypted, the API server's error names its key in etcd. The
    list goes on behind it, with a `continue` token made from that key.
3.  If the object can be decrypted but not decoded or converted, nothing names it. The
    list goes on with the next namespace.
4.  If the API server could only not reach its KMS plugin, the object is tried again.
"""

from __future__ import annotations

import http
import time
from typing import TYPE_CHECKING, Final

import msgspec

from hsm_kms.migrate.api import ListMeta, ResourceError, decoded, refused
from hsm_kms.migrate.objects import names_in
from hsm_kms.migrate.refusals import why_not
from hsm_kms.migrate.unreadable import (
    Unlisted,
    Unreadable,
    start_of,
    token_at,
    unreadable_in,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hsm_kms.migrate.api import Answer, Api
    from hsm_kms.migrate.journal import Journal
    from hsm_kms.migrate.resources import Resource

_AFTER_SLASH: Final = "0"  # the next character
_LAST: Final = "~"  # no name contains a character behind it
PAGE: Final = 100  # objects; a Secret has up to 1 MiB

_SHRINKING: Final = 10  # a page that fails may take the API server some seconds
_LISTS: Final = 5  # tries for a list whose `continue` token has expired
_OUT_OF_DATE: Final = {http.HTTPStatus.GONE, http.HTTPStatus.BAD_REQUEST}
_PAUSES: Final = (0.0, 1.0, 2.0, 4.0)  # seconds, for a KMS plugin that restarts


class Page(msgspec.Struct, frozen=True):
    """Describe one page of a list."""

    metadata: ListMeta
    items: list[msgspec.Raw] | None = None


class Listing:
    """List the objects of one resource, from where the journal stands.

    Args:
        api: The API server.
        journal: The progress; its `token` is updated.
        resource: The resource.
        sleep: Function that waits for a number of seconds.
    """

    def __init__(
        self,
        api: Api,
        journal: Journal,
        resource: Resource,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._api = api
        self._journal = journal
        self._resource = resource
        self._sleep = sleep
        self._namespace = journal.scope.namespace
        self._after_unreadable = False
        self._passed: set[str] = set()  # what the list went on behind

    def pages(self) -> Iterator[Page | Unreadable | Unlisted]:
        """Yield the pages, and each object or namespace that cannot be read.

        Raises:
            ApiError: The list fails, and there is no way past the object that fails.
        """
        journal, limit = self._journal, PAGE
        while True:
            answer = self._listed(limit)
            if answer.code == http.HTTPStatus.OK:
                page = decoded(answer.body, Page)
                self._after_unreadable &= not page.items
                yield page
                journal.token = page.metadata.token
                if not journal.token:
                    return
                limit = min(PAGE, 2 * limit)
            elif answer.code != http.HTTPStatus.INTERNAL_SERVER_ERROR:
                raise refused(f"list {self._resource}", answer)
            elif limit > 1:
                limit = max(1, limit // _SHRINKING)
            else:
                yield from self._past_the_first(answer)

    def _past_the_first(self, answer: Answer) -> Iterator[Page | Unreadable | Unlisted]:
        """Yield what the list fails at, and go on behind it.

        Raises:
            ApiError: There is no way past it.
        """
        journal, resource = self._journal, self._resource
        bad = unreadable_in(answer, resource)
        if bad is not None:
            self._check_new(bad.object)
            yield self._tried_again(bad)
            _, _, name = bad.object.rpartition("/")
            journal.token = token_at((name if self._namespace else bad.object) + "\0")
            return
        reason = f"cannot list {resource}: {why_not(answer)}"
        namespace = self._failing_namespace()
        if namespace is None:
            raise ResourceError(reason, hint="read the log of the API server")
        self._check_new(f"{namespace}/")
        yield Unlisted(namespace, reason)
        journal.token = token_at(namespace + _AFTER_SLASH)

    def _check_new(self, name: str) -> None:
        """Check that the list did get past an object or namespace, and will again.

        Raises:
            ResourceError: It began again instead, which would never end.
        """
        if name in self._passed:
            raise ResourceError(
                f"cannot list {self._resource} behind {name}, which is unreadable: the "
                "API server refuses the token to go on there"
            )
        self._passed.add(name)

    def _failing_namespace(self) -> str | None:
        """Return the namespace of the first object, or None if that cannot be found."""
        if self._namespace or not self._resource.namespaced:
            return None
        answer = self._api.get("/api/v1/namespaces")
        if answer.code != http.HTTPStatus.OK:
            return None
        start = start_of(self._journal.token)
        for prefix in sorted(f"{name}/" for name in names_in(answer.body)):
            if prefix + _LAST < start:
                continue
            query = {"limit": "1"}
            if start.startswith(prefix):
                query["continue"] = token_at(start.removeprefix(prefix))
            namespace = prefix.removesuffix("/")
            first = self._api.get(self._resource.path(namespace), **query)
            if first.code == http.HTTPStatus.INTERNAL_SERVER_ERROR:
                return namespace
        return None

    def _tried_again(self, bad: Unreadable) -> Page | Unreadable:
        """Return a page with the object alone, or the object if it stays unreadable."""
        found: Page | Unreadable = bad
        for pause in _PAUSES if bad.passing and not self._after_unreadable else ():
            self._sleep(pause)
            again = self._api.get(bad.path(self._resource))
            if again.code == http.HTTPStatus.OK:
                found = Page(ListMeta(), [msgspec.Raw(again.body)])
                break
        self._after_unreadable = isinstance(found, Unreadable)
        return found

    def _listed(self, limit: int) -> Answer:
        """Return the response for the page at which the journal stands.

        If listing takes longer than etcd keeps old revisions, the list continues at a
        later revision. Objects created in between are encrypted with the new key
        already.
        """
        path = self._resource.path(self._namespace)
        answer = self._get(path, limit)
        for _ in range(_LISTS):
            token = self._journal.token
            if not token or answer.code not in _OUT_OF_DATE:
                break
            status = answer.status
            later = status.metadata.token if status and status.metadata else ""
            self._journal.token = later if later != token else ""
            answer = self._get(path, limit)
        return answer

    def _get(self, path: str, limit: int) -> Answer:
        token = self._journal.token
        query = {"limit": str(limit)} | ({"continue": token} if token else {})
        return self._api.get(path, **query)
