"""The order of the steps, and that what is served has always been trusted for long enough."""

from __future__ import annotations

import pytest

from valetkey.injector.core import rotation
from valetkey.injector.core.rotation import Authority, Leaf, State, Step, Times

TIMES = Times(ca=1000, leaf=100, overlap=10)
NAMES = ("a", "b")


class Cluster:
    """Steps as a replica makes them; time goes on by itself between looks."""

    def __init__(self) -> None:
        self.now = 0.0
        self.state: State | None = None
        self.steps: list[Step] = []
        self.trusted_since: dict[str, float] = {}
        self._made = 0

    def authority(self) -> Authority:
        self._made += 1
        return Authority(f"ca{self._made};", "k", self.now, self.now + TIMES.ca)

    def leaf(self, authority: Authority) -> Leaf:
        return Leaf(authority.certificate, "k", NAMES, self.now, self.now + TIMES.leaf)

    def look(self) -> None:
        while True:
            state = self.state
            step = rotation.due(state, NAMES, TIMES, self.now)
            if state is not None and step is not Step.BEGIN:
                trusted = state.bundle.split(";")[:-1]
                self.trusted_since = {
                    each: self.trusted_since.get(each, self.now) for each in trusted
                }
            if step is Step.NOTHING:
                return
            self.steps.append(step)
            match step:
                case Step.BEGIN:
                    first = self.authority()
                    self.state = State((first,), self.leaf(first))
                case Step.PREPARE:
                    assert state is not None
                    self.state = rotation.prepared(state, self.authority())
                case Step.MARK:
                    assert state is not None
                    self.state = rotation.marked(state, self.now)
                case Step.SWITCH:
                    assert state is not None
                    assert state.coming is not None
                    self.state = rotation.switched(state, self.leaf(state.coming), self.now)
                case Step.DROP:
                    assert state is not None
                    self.state = rotation.dropped(state, TIMES, self.now)
                case Step.RENEW:
                    assert state is not None
                    leaf = self.leaf(state.authorities[0])
                    self.state = State(state.authorities, leaf)


@pytest.mark.parametrize("every", [1.0, 2.5])
def test_over_two_lives_of_a_ca_each_leaf_was_trusted_long_before(every: float) -> None:
    cluster = Cluster()
    served: list[tuple[float, str]] = []
    while cluster.now < 2 * TIMES.ca:
        cluster.look()
        state = cluster.state
        assert state is not None
        signer = state.leaf.certificate.rstrip(";")
        first = not served or served[0][1] == signer
        assert first or cluster.now - cluster.trusted_since[signer] >= TIMES.overlap
        # A replica that looks late still serves what it had a moment ago.
        earlier = [name for when, name in served if when >= cluster.now - TIMES.overlap + every]
        assert {*earlier, signer} <= cluster.trusted_since.keys()
        assert state.leaf.expires > cluster.now
        assert state.authorities[0].expires >= state.leaf.expires
        assert len(state.authorities) <= 2
        served.append((cluster.now, signer))
        cluster.now += every
    assert len({name for _, name in served}) >= 3
    steps = [step for step in cluster.steps if step is not Step.RENEW]
    whole = [Step.PREPARE, Step.MARK, Step.SWITCH, Step.DROP]
    assert steps[:5] == [Step.BEGIN, *whole]
    assert steps[5:9] == whole


def test_the_bundle_s_order_is_not_changed_by_a_switch() -> None:
    one, two = (Authority(f"ca{n};", "k", n, 1000, announced=5) for n in (1, 2))
    leaf = Leaf("l", "k", NAMES, 0, 100)
    before = State((one, two), leaf)
    after = rotation.switched(before, leaf, 20)
    assert after.authorities[0] == two
    assert before.bundle == after.bundle == "ca1;ca2;"


def test_other_names_want_another_leaf() -> None:
    cluster = Cluster()
    cluster.look()
    assert rotation.due(cluster.state, ("c",), TIMES, 1) is Step.RENEW


@pytest.mark.parametrize("later", [TIMES.leaf, TIMES.ca, 10 * TIMES.ca])
def test_after_a_long_sleep_it_begins_anew(later: float) -> None:
    cluster = Cluster()
    cluster.look()
    cluster.now = later
    cluster.steps.clear()
    cluster.look()
    assert cluster.steps == [Step.BEGIN]


def test_keys_do_not_show() -> None:
    authority = Authority("c", "secret-key", 0, 1)
    leaf = Leaf("c", "secret-key", NAMES, 0, 1)
    assert "secret-key" not in repr((authority, leaf, State((authority,), leaf)))
