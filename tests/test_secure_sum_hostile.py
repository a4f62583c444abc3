"""Secure aggregation against a server or a party that does not follow the protocol."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedray.errors import FedrayError, SecureSumError, SecureSumFailed
from fedray.secure_sum import Member, PartySide, Step, choose_parameters
from fedray.secure_sum.attempt import Attempt
from fedray.secure_sum.codec import LAYOUTS, Kind, Message, decode
from fedray.secure_sum.keys import Identity
from fedray.secure_sum.party_state import PartyState
from tests.support.secure_parties import RUN, WEIGHTS, MemoryStorage, Scene

OTHER_WEIGHTS = WEIGHTS[::-1]


def scene_at(step, n_parties=4):
    scene = Scene(n_parties)
    scene.begin()
    scene.go_to(step)
    if step == Step.MASKED:
        scene.server.use_weights(WEIGHTS)
    return scene


def request_of(scene, name="p0"):
    return scene.server.requests()[name]


def refused(scene, request, why, name="p0"):
    """The party refuses, and has nothing else on its disk afterwards."""
    files = dict(scene.storages[name].files)
    is_masked = decode(request).kind == Kind.MASKED_REQUEST
    call = (name, request) if is_masked else (request,)
    with pytest.raises(SecureSumError, match=why):
        (scene.mask if is_masked else scene.parties[name].answer)(*call)
    assert scene.storages[name].files == files


def altered(request, **changes):
    return replace(decode(request), **changes).encode()


# a server that sends two models


def test_two_models_in_one_attempt_are_noticed_by_the_parties_themselves():
    """The server names to each the hash of what it sent to it."""
    scene = scene_at(Step.MASKED, 3)
    for name, request in scene.server.requests().items():
        weights = OTHER_WEIGHTS if name == "p2" else WEIGHTS
        shown = altered(request, head=weights)
        scene.server.add([name], scene.mask(name, shown, weights))
    scene.server.close()
    signed = {}
    for name, request in scene.server.requests().items():
        signed[name] = scene.parties[name].answer(request)
    with pytest.raises(SecureSumError, match="a signature on another sum"):
        scene.server.accept("p2", signed["p2"])
    heads = [decode(signed[name]).head for name in ("p0", "p1", "p2")]
    for name in scene.parties:
        context = scene.server.attempt.context
        members = frozenset({0, 1, 2})
        show = Message(Kind.REVEAL_REQUEST, context, b"", members, tuple(heads))
        refused(scene, show.encode(), "did|another sum than this party signed", name)


def test_weights_that_changed_on_the_way_are_noticed_before_masking():
    scene = scene_at(Step.MASKED)
    with pytest.raises(SecureSumError, match="weights with another hash"):
        scene.mask("p0", request_of(scene), OTHER_WEIGHTS)


def test_a_sum_over_two_models_has_no_zeros_and_is_not_used():
    """Even if all parties had been talked into revealing."""
    scene = scene_at(Step.MASKED, 3)
    request = altered(request_of(scene, "p2"), head=OTHER_WEIGHTS)
    for name in ("p0", "p1"):
        scene.server.add([name], scene.mask(name, request_of(scene, name)))
    scene.server.add(["p2"], scene.mask("p2", request, OTHER_WEIGHTS))
    scene.server.close()
    state = PartyState.decode(scene.storages["p2"].files["state.json"])
    slot = replace(state.slots[0], weights=WEIGHTS)
    state = replace(state, slots=(slot,))
    scene.storages["p2"].write("state.json", [state.encode()])
    with pytest.raises(SecureSumFailed, match="count, weights or zeros are wrong"):
        scene.finish()
    assert scene.server.is_opened
    scene.restart_server()
    assert "zeros are wrong" in scene.server.failure


# a server that shows parties different sets


def test_different_sums_for_two_parties_are_refused():
    scene = scene_at(Step.ALIVE, 4)
    honest = request_of(scene)
    other = altered(honest, members=frozenset({0, 1, 2}))
    heads = {}
    for place, name in enumerate(scene.parties):
        shown = other if name == "p0" else honest
        heads[place] = decode(scene.parties[name].answer(shown)).head
    context = scene.server.attempt.context
    for name in scene.parties:
        members = frozenset({0, 1, 2} if name == "p0" else heads)
        items = tuple(heads[v] for v in sorted(members))
        show = Message(Kind.REVEAL_REQUEST, context, b"", members, items)
        refused(scene, show.encode(), "on another sum than this party signed", name)


def test_a_second_sum_of_one_attempt_is_refused():
    scene = scene_at(Step.ALIVE)
    request = request_of(scene)
    scene.parties["p0"].answer(request)
    second = altered(request, members=frozenset({0, 1, 2}))
    refused(scene, second, "a second alive request, unlike the first")
    scene.restart_parties("p0")
    refused(scene, second, "a second alive request, unlike the first")


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({1, 2, 3}, "U3 without this party"),
        ({0, 1}, "U3 of 2 parties.*needed 3"),
        ({0, 1, 2, 9}, "U3 with strangers"),
        ({0}, "U3 of 1"),
        (set(), "U3 without this party"),
    ],
)
def test_a_sum_that_does_not_hide_the_party_is_not_signed(members, why):
    scene = scene_at(Step.ALIVE)
    refused(scene, altered(request_of(scene), members=frozenset(members)), why)


def test_a_sum_with_parties_that_shared_nothing_is_not_signed():
    scene = Scene(5)
    scene.begin()
    scene.step()
    scene.step(["p4"])
    scene.step(["p4"])
    everybody = altered(request_of(scene), members=frozenset(range(5)))
    refused(scene, everybody, "p4 beyond that; needed U3 within U2")


# a server that asks for more shares than it may have


def test_no_party_gives_both_kinds_of_share_of_another():
    """With U3 of all it gives seeds only; a request for the rest is another U3."""
    scene = scene_at(Step.REVEAL, 4)
    shares = PartyState.decode(scene.storages["p0"].files["state.json"]).slots[0].shares
    request = request_of(scene)
    items = decode(scene.parties["p0"].answer(request)).items
    assert items == tuple(share[:66] for _, share in sorted(shares.items()))
    fewer = frozenset({0, 1, 2})
    again = Message(Kind.ALIVE_REQUEST, scene.server.attempt.context, b"", fewer)
    refused(scene, again.encode(), "a second alive request")
    signatures = decode(request)
    heads = tuple(
        h
        for v, h in zip(sorted(signatures.members), signatures.items, strict=True)
        if v in fewer
    )
    refused(
        scene, altered(request, members=fewer, items=heads), "a second reveal request"
    )


def test_of_an_absent_party_its_mask_secret_is_shared_and_no_seed():
    scene = scene_at(Step.MASKED, 4)
    scene.step(["p3"])
    scene.go_to(Step.REVEAL)
    shares = PartyState.decode(scene.storages["p0"].files["state.json"]).slots[0].shares
    items = decode(scene.parties["p0"].answer(request_of(scene))).items
    assert items == (*(shares[v][:66] for v in (0, 1, 2)), shares[3][66:])


def test_shares_are_revealed_only_to_enough_signatures():
    scene = scene_at(Step.REVEAL, 10)  # t = 7
    message = decode(request_of(scene))
    few = replace(message, members=frozenset(range(6)), items=message.items[:6])
    refused(scene, few.encode(), "6 signatures on U3.*needed 7")
    forged = (*message.items[:9], bytes(64))
    refused(scene, replace(message, items=forged).encode(), "a signature of p9 on")
    twice = replace(message, items=(message.items[0],) * 10)
    refused(scene, twice.encode(), "a signature of p1 on another sum")
    missing = replace(message, items=message.items[:9])
    refused(scene, missing.encode(), "9 items in a reveal request.*needed 10")
    strangers = replace(
        message, members=message.members | {70}, items=(*message.items, bytes(64))
    )
    refused(scene, strangers.encode(), "#70 beyond that")


# replays, forgeries, mixtures


def test_old_messages_mean_nothing_in_another_attempt():
    scene, old = Scene(4), {}
    scene.begin()
    while scene.server.step != Step.DONE:
        if scene.server.step == Step.MASKED:
            scene.server.use_weights(WEIGHTS)
        old[scene.server.step] = request_of(scene)
        scene.step()
    scene.begin(round=2)
    scene.go_to(Step.MASKED)
    scene.server.use_weights(WEIGHTS)
    scene.mask("p0", request_of(scene))
    for step in (Step.SHARES, Step.MASKED, Step.ALIVE, Step.REVEAL):
        refused(scene, old[step], "an attempt that it has not joined")
        # the same bytes under the new attempt's name
        if step != Step.ALIVE:  # which would be what an honest server asks next
            context = scene.server.attempt.context
            relabelled = altered(old[step], context=context)
            refused(scene, relabelled, r"a second|out of order")
    refused(scene, old[Step.KEYS], "though round 1 was opened")


def test_keys_of_another_attempt_or_party_are_refused():
    scene, earlier = scene_at(Step.SHARES), scene_at(Step.SHARES)
    message = decode(request_of(scene))
    old = decode(request_of(earlier)).items
    swapped = (message.items[1], message.items[0], message.items[2])
    for items in (old, swapped, (bytes(128), *message.items[1:])):
        refused(scene, replace(message, items=items).encode(), "p1 did not sign")
    fewer = replace(message, items=message.items[:2]).encode()
    refused(scene, fewer, "2 items in a shares request.*needed 3")


def test_a_party_answers_steps_in_their_order_only():
    scene = scene_at(Step.SHARES)
    context, members = scene.server.attempt.context, frozenset(range(4))
    for kind, item in [(Kind.ALIVE_REQUEST, 0), (Kind.REVEAL_REQUEST, 64)]:
        items = (bytes(item),) * 4 if item else ()
        request = Message(kind, context, b"", members, items).encode()
        refused(scene, request, "out of order; needed a .* request before")
    boxes = (bytes(148),) * 3
    masked = Message(Kind.MASKED_REQUEST, context, WEIGHTS, members, boxes)
    refused(scene, masked.encode(), "out of order; needed a shares request before")
    for kind in (Kind.KEYS, Kind.SHARES, Kind.ALIVE, Kind.REVEAL):
        answer = Message(kind, context, bytes(max(0, LAYOUTS[kind].head))).encode()
        refused(scene, answer, "out of order")


def test_boxes_of_others_and_altered_ones_are_refused():
    scene = scene_at(Step.MASKED)
    message = decode(request_of(scene))
    to_p1 = decode(request_of(scene, "p1")).items  # from p0, p2, p3
    torn = message.items[0][:-1] + bytes([message.items[0][-1] ^ 1])
    for items in (
        message.items[::-1],
        (torn, *message.items[1:]),
        (to_p1[0], *message.items[1:]),
    ):
        refused(
            scene, replace(message, items=items).encode(), "a box that p[13] did not"
        )
    scene.mask("p0", message.encode())
    other = replace(message, head=OTHER_WEIGHTS).encode()
    with pytest.raises(SecureSumError, match="a second masked request"):
        scene.mask("p0", other, OTHER_WEIGHTS)


def test_a_second_vector_under_the_same_masks_is_never_made():
    scene = scene_at(Step.MASKED, 5)
    request = decode(request_of(scene))
    first = scene.mask("p0", request.encode()).tobytes()
    scene.vectors["p0"] = -scene.vectors["p0"]
    assert scene.mask("p0", request.encode()).tobytes() == first
    fewer = replace(request, members=frozenset({0, 1, 2, 3}), items=request.items[:3])
    with pytest.raises(SecureSumError, match="a second masked request"):
        scene.mask("p0", fewer.encode())
    scene.restart_parties("p0")
    with pytest.raises(SecureSumError, match="a second masked request"):
        scene.mask("p0", fewer.encode())


# rosters


def keys_request(attempt):
    return Message(Kind.KEYS_REQUEST, attempt.context, attempt.encode()).encode()


def test_a_roster_with_another_identity_than_before_is_refused():
    scene = scene_at(Step.SHARES)
    attempt = scene.attempt(round=2)
    stranger = Identity(bytes([5] * 32)).public
    for place, why in [
        (1, "another identity of p1 than before"),
        (0, "another identity of p0 than before"),
    ]:
        roster = list(attempt.roster)
        roster[place] = Member(roster[place].name, stranger)
        refused(scene, keys_request(replace(attempt, roster=tuple(roster))), why)
    five = {"roster": (*attempt.roster, Member("p9", stranger))}
    newcomer = replace(attempt, **five, parameters=choose_parameters(5, 5))
    scene.parties["p0"].answer(keys_request(newcomer))  # parties may join


def test_a_roster_without_the_party_is_refused():
    scene = Scene(4)
    attempt = scene.attempt()
    stranger = Identity(bytes([5] * 32)).public
    others = replace(
        attempt, roster=attempt.roster[1:], parameters=choose_parameters(5, 3)
    )
    refused(scene, keys_request(others), "a roster without p0 under its own identity")
    replaced = (Member("p0", stranger), *attempt.roster[1:])
    refused(scene, keys_request(replace(attempt, roster=replaced)), "its own identity")
    twice = (*attempt.roster[:3], Member("p0", stranger))
    refused(scene, keys_request(replace(attempt, roster=twice)), "one name twice")
    same = (*attempt.roster[:3], Member("p9", attempt.roster[1].identity))
    refused(scene, keys_request(replace(attempt, roster=same)), "one identity twice")


def test_a_sum_of_fewer_than_the_party_wants_is_refused():
    scene = Scene(10)
    attempt = scene.attempt()  # min_sum 7
    low = replace(attempt, parameters=replace(attempt.parameters, min_sum=6))
    refused(scene, keys_request(low), "sums of 6 of 10 parties; needed 7 or more")
    lenient = PartySide("p0", scene.storages["p0"], min_sum=4)
    lenient.answer(keys_request(low))
    strict = PartySide("p1", scene.storages["p1"], min_sum=9)
    with pytest.raises(
        SecureSumError, match=r"sums of 7 .* needed 9 or more \(min_sum\)"
    ):
        strict.answer(keys_request(attempt))


def test_a_roster_of_two_is_refused_where_there_were_more():
    scene = scene_at(Step.SHARES)
    attempt = scene.attempt(round=2)
    pair = replace(
        attempt, roster=attempt.roster[:2], parameters=choose_parameters(5, 2)
    )
    refused(scene, keys_request(pair), "sums of 2 of 2 parties; needed 3 or more")


def test_a_party_serves_one_run_and_group():
    scene = scene_at(Step.SHARES)
    for change in ({"run": "other"}, {"group": "b"}):
        attempt = replace(scene.attempt(round=2), **change)
        refused(scene, keys_request(attempt), f"needed run '{RUN}', group ''")


def test_the_caller_may_refuse_an_attempt():
    def check(attempt):
        if attempt.parameters.noise_variance == 0:
            raise SecureSumError(str(attempt), "a sum without noise", "noise")

    scene = Scene(3)
    careful = PartySide("p0", scene.storages["p0"], check=check)
    with pytest.raises(SecureSumError, match="round 1, attempt 1: got a sum without"):
        careful.answer(keys_request(scene.attempt()))


def test_an_attempt_with_a_lower_or_the_same_number_is_refused():
    scene = Scene(4)
    scene.begin(number=3)
    scene.step()
    other = replace(scene.attempt(number=3), parameters=choose_parameters(6, 4))
    refused(scene, keys_request(other), "after attempt 3, which differs")
    refused(scene, keys_request(scene.attempt(number=2)), "needed a higher number")
    with pytest.raises(SecureSumError, match="this attempt after attempt 3"):
        scene.begin(number=3)


def test_a_party_that_lost_what_it_opened_is_no_longer_the_same_party():
    scene = scene_at(Step.ALIVE)
    storage = scene.storages["p0"]
    storage.remove("state.json")
    with pytest.raises(SecureSumError, match=r"identity.key without state.json"):
        PartySide("p0", storage)
    storage.remove("identity.key")
    PartySide("p0", storage)
    scene.restart_parties("p0")
    attempt = scene.attempt(round=2)
    with pytest.raises(SecureSumError, match="another identity of p0 than before"):
        scene.parties["p1"].answer(keys_request(attempt))


# parties that do not follow the protocol, seen by the server


def test_the_server_refuses_forged_answers():
    scene = scene_at(Step.KEYS)
    answer = scene.parties["p0"].answer(request_of(scene))
    with pytest.raises(SecureSumError, match="party p1: got keys that it did not sign"):
        scene.server.accept("p1", answer)
    other = Scene(4)
    other.begin()
    with pytest.raises(SecureSumError, match="of another attempt"):
        scene.server.accept("p0", other.parties["p0"].answer(request_of(other)))
    scene.go_to(Step.SHARES)
    with pytest.raises(SecureSumError, match="kind 'keys' or of another attempt"):
        scene.server.accept("p0", answer)
    boxes = decode(scene.parties["p0"].answer(request_of(scene)))
    with pytest.raises(SecureSumError, match="party p0: got 2 shares; needed 3"):
        scene.server.accept("p0", replace(boxes, items=boxes.items[1:]).encode())


def test_keys_of_small_order_are_refused_by_the_server():
    scene = scene_at(Step.KEYS)
    attempt = scene.server.attempt
    identity = Identity(scene.storages["p0"].files["identity.key"])
    public = bytes(64)
    signature = identity.sign("keys", attempt.context, 0, public)
    answer = Message(Kind.KEYS, attempt.context, public + signature).encode()
    with pytest.raises(SecureSumError, match="or unusable; needed its own keys"):
        scene.server.accept("p0", answer)


def test_a_refusal_reaches_the_server_with_its_reason():
    scene = scene_at(Step.ALIVE)
    without = altered(request_of(scene), members=frozenset({1, 2, 3}))
    (answer,) = scene.parties["p0"].answer_all([without])
    with pytest.raises(SecureSumError, match=r"p0: got a refusal \(.*U3 without this"):
        scene.server.accept("p0", answer)
    assert "p0" in scene.server.waits_for


def test_a_refusal_leaves_other_answers_of_the_trip_as_they_are():
    scene = scene_at(Step.ALIVE)
    request = request_of(scene)
    answers = scene.parties["p0"].answer_all([b"\x02nonsense", request])
    assert decode(answers[0]).kind == Kind.REFUSED
    scene.server.accept("p0", answers[1])
    scene.restart_parties("p0")
    assert scene.parties["p0"].answer(request) == answers[1]


def test_another_share_than_was_made_is_noticed():
    for is_absent in (False, True):
        scene = scene_at(Step.MASKED, 4)
        scene.step(["p3"] if is_absent else [])
        scene.go_to(Step.REVEAL)
        for name, request in scene.server.requests().items():
            message = decode(scene.parties[name].answer(request))
            if name == "p0":  # shifted by one place
                message = replace(message, items=(*message.items[1:], message.items[0]))
            scene.server.accept(name, message.encode())
        scene.server.close()
        with pytest.raises(SecureSumFailed, match=r"do not rebuild a secret|zeros are"):
            scene.server.result()


def test_a_party_cannot_spoil_the_ring_unnoticed():
    scene = scene_at(Step.MASKED)
    bound = scene.parameters.bound
    request, side = request_of(scene), scene.parties["p0"]
    for vector, weight, why in [
        ([bound + 1, 0, 0, 0, 0], 1, "a coordinate beyond the bound"),
        ([-bound - 1, 0, 0, 0, 0], 1, "a coordinate beyond the bound"),
        ([0, 0, 0, 0], 1, "got 4 coordinates; needed 5"),
        ([0] * 6, 1, "more than 5 coordinates"),
        ([0] * 5, 2, "another weight; needed 1 to 1"),
        ([0] * 5, 0, "another weight"),
        ([0.5] * 5, 1, "coordinates of dtype float64; needed integers"),
    ]:
        with pytest.raises(SecureSumError, match=why):
            side.mask(request, WEIGHTS, [np.array(vector)], weight)
    assert side.masked(request) is None


# anything at all


@pytest.fixture(scope="module")
def scenes():
    return {step: scene_at(step, 3) for step in list(Step)[:5]}


def real_requests(scene):
    return [*scene.server.requests().values()]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), step=st.sampled_from(list(Step)[:5]))
def test_malformed_requests_are_refused_or_answered_never_fatal(scenes, data, step):
    """Bytes cut off, put in, changed: an error of fedray's, and no other."""
    scene = scenes[step].copy()
    if step == Step.MASKED:
        scene.server.use_weights(WEIGHTS)
    request = request_of(scene)
    torn = data.draw(st.one_of(st.binary(max_size=200), mutations(request)))
    try:
        if torn[:1] == bytes([Kind.MASKED_REQUEST]):
            scene.mask("p0", torn)
        else:
            scene.parties["p0"].answer(torn)
    except FedrayError as error:
        assert len(str(error)) < 2500  # noqa: PT017
    else:
        assert torn == request


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.data(),
    step=st.sampled_from([Step.KEYS, Step.SHARES, Step.ALIVE, Step.REVEAL]),
)
def test_malformed_answers_are_refused_by_the_server(scenes, data, step):
    scene = scenes[step].copy()
    answer = scene.parties["p0"].answer(request_of(scene))
    torn = data.draw(st.one_of(st.binary(max_size=200), mutations(answer)))
    try:
        scene.server.accept("p0", torn)
    except FedrayError:
        assert "p0" in scene.server.waits_for
    else:  # boxes and shares are checked by whoever opens them
        assert torn == answer or (
            step in (Step.SHARES, Step.REVEAL) and len(torn) == len(answer)
        )


@st.composite
def mutations(draw, message):
    at = draw(st.integers(0, len(message) - 1))
    kind = draw(st.sampled_from(["cut", "insert", "change", "append"]))
    if kind == "cut":
        return message[:at]
    if kind == "insert":
        return message[:at] + draw(st.binary(min_size=1, max_size=80)) + message[at:]
    if kind == "append":
        return message + draw(st.binary(min_size=1, max_size=80))
    other = bytes([message[at] ^ draw(st.integers(1, 255))])
    return message[:at] + other + message[at + 1 :]


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400))
def test_what_decodes_encodes_to_the_same_bytes(data):
    """One form for each message: else two hashes for one meaning."""
    for kind in [None, *Kind]:
        raw = data if kind is None else bytes([kind]) + data
        try:
            message = decode(raw)
        except SecureSumError:
            continue
        assert message.encode() == raw
        if message.kind == Kind.KEYS_REQUEST:
            try:
                attempt = Attempt.decode(message.head)
            except SecureSumError:
                continue
            assert attempt.encode() == message.head


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_state_file_is_an_error_that_shows_nothing(scenes, data):
    files = dict(scenes[Step.ALIVE].storages["p0"].files)
    files["state.json"] = data.draw(mutations(files["state.json"]))
    try:
        PartySide("p0", MemoryStorage(files))
    except SecureSumError as error:
        assert len(str(error)) < 300  # noqa: PT017
