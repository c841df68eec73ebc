"""Look at what a rotation is about: the token, etcd and the nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hsm_kms.cli.keys.read_survey import survey_of
from hsm_kms.cli.keys.unused import stored_names, tally_of
from hsm_kms.cli.nodes import Comparison, SourceType
from hsm_kms.keys.key_id import fingerprint_in

if TYPE_CHECKING:
    from hsm_kms.cli.etcd.options import EtcdChoice
    from hsm_kms.cli.keys.options import Given
    from hsm_kms.cli.keys.survey import Survey
    from hsm_kms.cli.rotation.journal import Rotation
    from hsm_kms.etcd.tally import Tally
    from hsm_kms.migrate.kubectl import Kubectl


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """Hold what whoever runs the command brings along; none of it is in the journal.

    Args:
        given: Configuration and login.
        etcd: The etcd of the cluster.
        kubectl: The kubectl for the cluster.
        rate: Most objects to re-encrypt per second.
        allow_changes: Accept that the cluster changes objects when they are written.
        wait: How long a step may wait for nodes or the cluster, in seconds.
        force: Allow a short time until the new key is current.
    """

    given: Given
    etcd: EtcdChoice
    kubectl: Kubectl
    rate: float
    allow_changes: bool
    wait: float
    force: bool = False


class World:
    """Look at token, etcd and nodes; what was seen is kept until `forget`.

    Args:
        means: What the command was given.
        rotation: The journal.
        survey: What is on the token, if that is known already.
    """

    def __init__(
        self, means: Means, rotation: Rotation, survey: Survey | None = None
    ) -> None:
        self.means = means
        self.rotation = rotation
        self._survey = survey
        self._tally: tuple[Tally, str] | None = None

    def forget(self) -> None:
        """Forget what was seen: the next look is a new one."""
        self._survey = self._tally = None

    def forget_etcd(self) -> None:
        """Forget what etcd held: the next scan is a new one."""
        self._tally = None

    def survey(self) -> Survey:
        """Return what is on the token.

        Raises:
            HsmKmsError: The token cannot be read.
        """
        if self._survey is None:
            self._survey = survey_of(self.means.given)
        return self._survey

    def old_names(self) -> set[str]:
        """Return the names under which etcd may hold values of the old key.

        Raises:
            HsmKmsError: The token cannot be read.
        """
        old = self.rotation.old_key
        found = self.survey().find(old)
        own = {fingerprint_in(old)}
        return own if found is None else own | stored_names(self.survey(), found)

    def tally(self) -> tuple[Tally, str]:
        """Return what etcd holds, and the name of the source.

        Raises:
            EtcdError: Not every object could be read.
        """
        if self._tally is None:
            self._tally = tally_of(self.means.etcd, self.old_names())
        return self._tally

    def under_old(self) -> int:
        """Return the number of objects that are stored under the old key.

        Raises:
            EtcdError: Not every object could be read.
        """
        tally, _ = self.tally()
        return sum(map(tally.of_key, self.old_names()))

    def nodes(self, key_id: str | None) -> Comparison:
        """Compare the nodes, which are read now.

        Args:
            key_id: A key that each of them must hold, or None.
        """
        kind = SourceType()
        sources = [kind.convert(each, None, None) for each in self.rotation.nodes]
        return Comparison.of(sources, key_id)
