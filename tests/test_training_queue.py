"""The order in which waiting trainings start: fair between clients, within limits."""

from dataclasses import replace

from fedray.service.training_queue import (
    MAX_OVERTAKEN,
    Demand,
    Training,
    find_excess,
    n_overtaken,
    next_trainings,
)

MANY = Demand(trainings=100, parties=1000, memory=1 << 40)


def waiting(id, client, since, parties=2, memory=0):
    return Training(id, client, Demand(1, parties, memory), since)


def running(id, client, parties=2, memory=0):
    demand = Demand(1, parties, memory)
    return Training(id, client, demand, 0.0, started=0.0, is_running=True)


def ended(id, client, since, started):
    return Training(id, client, Demand(1, 2), since, started)


def ids(trainings, client=MANY, total=MANY):
    return [one.id for one in next_trainings(trainings, client, total)]


def test_what_fits_starts_at_once_the_oldest_first():
    three = [waiting("c", "ann", 3), waiting("a", "ann", 1), waiting("b", "ann", 2)]
    assert ids(three) == ["a", "b", "c"]


def test_clients_take_turns_however_many_trainings_one_of_them_has():
    anns = [waiting(f"a{i}", "ann", i) for i in range(5)]
    line = [*anns, waiting("b0", "bob", 10), waiting("b1", "bob", 11)]
    assert ids(line, total=replace(MANY, trainings=4)) == ["a0", "b0", "a1", "b1"]


def test_the_client_that_trains_least_is_first():
    line = [running("r", "ann"), waiting("a", "ann", 1), waiting("b", "bob", 2)]
    assert ids(line, total=replace(MANY, trainings=2)) == ["b"]


def test_a_client_whose_training_has_just_ended_lets_others_have_their_turn():
    line = [ended("r", "ann", 0, 1), waiting("a", "ann", 0), waiting("b", "bob", 9)]
    assert ids(line, total=replace(MANY, parties=2)) == ["b"]


def test_trainings_of_one_client_wait_within_its_own_limits():
    anns = [waiting(f"a{i}", "ann", i, parties=3) for i in range(3)]
    line = [*anns, waiting("b", "bob", 9)]
    assert ids(line, client=replace(MANY, parties=7)) == ["a0", "b", "a1"]
    assert ids(line, client=replace(MANY, trainings=1)) == ["a0", "b"]


def test_memory_is_a_limit_as_processes_are():
    line = [
        running("r", "ann", memory=6),
        waiting("a", "bob", 1, memory=5),
        waiting("b", "cid", 2, memory=4),
    ]
    assert ids(line, total=replace(MANY, memory=10)) == ["b"]


def test_a_small_training_uses_room_that_a_large_one_cannot_use_yet():
    line = [running("r", "ann", parties=6), waiting("a", "bob", 1, parties=4)]
    total = replace(MANY, parties=8)
    assert ids([*line, waiting("b", "cid", 2)], total=total) == ["b"]


def test_small_trainings_do_not_starve_a_large_one():
    total = replace(MANY, parties=8)
    line = [running("r", "ann", parties=6), waiting("large", "bob", 1, parties=8)]
    small = waiting("small", "cid", 1000)
    passed = [ended(f"e{i}", "cid", 2 + i, 3 + i) for i in range(MAX_OVERTAKEN - 1)]
    assert ids([*line, *passed, small], total=total) == ["small"]
    one_more = ended("e", "cid", 500, 501)
    assert ids([*line, *passed, one_more, small], total=total) == []
    assert ids([line[1], *passed, one_more, small], total=total) == ["large"]


def test_small_trainings_of_a_client_do_not_starve_its_own_large_one():
    most = replace(MANY, parties=8)
    line = [running("r", "ann", parties=4), waiting("large", "ann", 1, parties=8)]
    passed = [ended(f"e{i}", "ann", 2 + i, 3 + i) for i in range(MAX_OVERTAKEN)]
    small, other = waiting("small", "ann", 1000), waiting("other", "bob", 1001)
    assert ids([*line, small, other], client=most) == ["other", "small"]
    assert ids([*line, *passed, small, other], client=most) == ["other"]


def test_only_those_that_came_later_have_overtaken():
    large = waiting("large", "ann", 5)
    others = [ended("before", "b", 1, 9), waiting("not started", "b", 6)]
    assert n_overtaken(large, [*others, ended("after", "b", 6, 7)]) == 1


def test_without_keys_all_are_one_client():
    line = [waiting("b", None, 2), waiting("a", None, 1)]
    assert ids(line, total=replace(MANY, trainings=1)) == ["a"]


def test_a_training_that_exceeds_a_limit_alone_is_found_before_it_waits():
    limits = {"client": Demand(4, 16, 100), "total": Demand(8, 12, 200)}
    assert find_excess(Demand(1, 12, 100), limits) is None
    assert find_excess(Demand(1, 13, 100), limits) == ("total", "parties", 12)
    assert find_excess(Demand(1, 17, 101), limits) == ("client", "parties", 16)
    assert find_excess(Demand(1, 2, 101), limits) == ("client", "memory", 100)
