"""Cells of the fault grid: victims, stages of a round, their names in the table."""

ROUNDS = 3
STAGES = ("sending", "training", "reported", "combining", "writing")
NODES = {
    "party": "a party's actor (`ray.kill`)",
    "worker": "a party's worker process",
    "node": "a node with parties (a spare joins)",
    "combiner": "the node's combiner",
    "aggregator": "the aggregator",
    "driver": "the driver",
}
PRIVATE = {  # the same with noise for parties: bits, and one line a round in the ledger
    "private_party": "noise for parties: a party's actor",
    "private_node": "noise for parties: a node with parties",
    "private_aggregator": "noise for parties: the aggregator",
    "private_driver": "noise for parties: the driver",
}
SERVICE = {
    "replica": "the service's HTTP server",
    "federation": "a federation's actor in the service",
    "service": "`fedray serve` + cluster",
}
TROUBLES = {
    "paused_party": "a party stands still for 10 s",
    "paused_aggregator": "the aggregator stands still for 10 s",
    "paused_raylet": "a node's raylet stands still for 10 s",
    "slow_node": "a node runs at a tenth of its speed for 10 s",
    "slow_disk": "every flush to the disk takes 1 s",
}
ONLY = {"combiner": ["combining"], "slow_disk": ["writing"]}
ONLY |= {name: ["training"] for name in TROUBLES if name != "slow_disk"}
SAID = NODES | PRIVATE | SERVICE | TROUBLES
CELLS = [f"{v}:{stage}" for v in SAID for stage in ONLY.get(v, STAGES)]
QUICK = [  # one of each victim, for `make test`
    "party:sending",
    "worker:training",
    "node:reported",
    "combiner:combining",
    "aggregator:writing",
    "driver:combining",
    "service:training",
]
