"""A question of AuthZEN in a file, decided by settings, grants and policies on disk.

What only a running broker knows is taken to be nothing: no incidents, no uses, no open deployment
windows, no grants made by API, no directory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from valetkey.broker.cedar_files import read_policy_files
from valetkey.broker.core.attributes import AttributesInvalid, ClaimDirectory
from valetkey.broker.core.authzen import Evaluation, Question, QuestionInvalid, Registry
from valetkey.broker.core.cedar import Policies
from valetkey.broker.core.containment import Attestation, Epoch, IncidentFacts, Standing
from valetkey.broker.core.explanation import Explanation, explain
from valetkey.broker.core.grants import LiveGrants, Policy
from valetkey.broker.policy_file import read_grants
from valetkey.broker.policy_settings import compiled_agents, compiled_claims
from valetkey.broker.settings import BrokerSettings
from valetkey.broker.trust.people import People
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.settings import parse_yaml

_NOTHING_KNOWN = Standing(Epoch(), Attestation(None, None), ended=False, key_ended=False)


class Rules:
    """All that a decision rests on, as it is on disk.

    ``grants`` and ``policies`` take the place of those that the settings name. Raises
    `ConfigError`, `PoliciesInvalid`.
    """

    def __init__(
        self, config: BrokerSettings, *, grants: Path | None, policies: Sequence[Path]
    ) -> None:
        self.policy: Policy = read_grants(
            grants or config.grants_file,
            config.compiled_targets(),
            issuers=config.workload_issuers(),
            deployers=config.deployment_issuers(),
            live=LiveGrants(),
        )
        paths = list(policies) or ([] if config.policies is None else [config.policies])
        texts = read_policy_files(paths) if paths else None
        self.policies = Policies.compile(texts, config.compiled_places())
        self._people = People(
            ClaimDirectory(compiled_claims(config.claims)),
            compiled_agents(config.agents),
            issuers=config.workload_issuers(),
        )

    async def explain(self, asked: Evaluation, *, now: float) -> Explanation:
        """``now`` is in seconds since the epoch. Raises `QuestionInvalid`."""
        question: Question = Registry(self.policy.targets, self.policies.places).question(asked)
        try:
            known = await self._people.known(question.client, question.client_claims, question.user)
        except AttributesInvalid as error:
            raise QuestionInvalid(f"subject.properties: {error}") from error
        incidents = IncidentFacts(
            client=_NOTHING_KNOWN,
            user=None if question.user is None else _NOTHING_KNOWN,
            target_ended=False,
            ended_grants=frozenset(),
            skew=0.0,
        )
        return explain(question.facts(incidents, known), self.policy, self.policies, now=now)


def read_question(path: Path) -> dict[str, Any]:
    """The question in a file of YAML or JSON, as it is sent to a broker. Raises `ConfigError`.

    Over HTTP unknown members are ignored, as the specification demands; in a file they are
    mistakes.
    """
    try:
        document = parse_yaml(path.read_text(encoding="utf-8"), str(path))
        asked = msgspec.convert(document, Evaluation)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
    for unknown in _unknown(document, asked, "$"):
        raise ConfigError(f"{path}: {unknown} is no member of a question")
    plain: dict[str, Any] = document
    return plain


def _unknown(document: Any, read: Any, where: str) -> Iterator[str]:
    """Members that no field of the struct was read from."""
    if not isinstance(read, msgspec.Struct):
        return
    for name, value in document.items():
        if name not in read.__struct_fields__:
            yield f"{where}.{name}"
        else:
            yield from _unknown(value, getattr(read, name), f"{where}.{name}")
