"""Cells of the grid of edge faults: who is killed, when, and the table's names."""

ROUNDS = 3
STAGES = ("enrolling", "waiting", "downloading", "training", "uploading", "reporting")
VICTIMS = {
    "edge": "an edge",
    "network": "its network, cut",
    "door": "the edges' door",
    "group": "the EdgeGroup",
    "aggregator": "the aggregator",
    "driver": "the driver",
}
TASK = rb"/edge/v1/tasks/[0-9a-f]+"
CALLS = {  # stage -> what the call begins with, and how many such calls pass before it
    "enrolling": (rb"POST /edge/v1/enrol", 0),
    "waiting": (rb"POST /edge/v1/checkin", 2),
    "downloading": (rb"GET /edge/v1/objects/", 3),
    "uploading": (rb"PATCH " + TASK, 1),
    "reporting": (rb"POST " + TASK + rb"/commit", 2),
}
NETWORKS = {  # what a network does to 7 of 10 connections
    "drop": "connections end early",
    "delay": "bytes come late",
    "duplicate": "calls arrive twice",
    "reset": "connections are reset in mid-transfer",
    "trickle": "bytes come one by one",
    "half_open": "the other end is silent",
    "all": "all of these",
    "tutorial": "all of these, the tutorial's federation",
}
KILLS = [f"{victim}:{stage}" for victim in VICTIMS for stage in STAGES]
CELLS = KILLS + [f"faults:{kind}" for kind in NETWORKS]
QUICK = [  # for `make test`; a driver of its own takes longer than all these
    "edge:uploading",
    "door:reporting",
    "group:downloading",
    "aggregator:downloading",
    "faults:reset",
]
