"""Attacks over HTTP on one service, each for some seconds: others do not notice.

Each is played for 5 s, by `make attacks` for 60 s (`FEDRAY_ATTACK_S`). While and after
each, `Scene.play` holds (support/attack_scene.py):

- ``/health`` answers in under 1 s of a machine that has a core free;
- a neighbour trains two parties again and again, with the same bits each time;
- the service takes no more memory than undisturbed and 512 MB, in a cgroup if possible;
- within 30 s afterwards it takes no more than before and 100 MB, and no process, upload
  or file is left that belongs to no federation.
"""

import os

import pytest
from support.attack_scene import scene
from support.attacks import ATTACKS
from support.attacks_table import PAGE, page_with_table

SECONDS = float(os.environ.get("FEDRAY_ATTACK_S", "5"))


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    with scene(tmp_path_factory.mktemp("attacks")) as one:
        yield one


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda one: one.play.__name__)
def test_others_do_not_notice_an_attack_and_nothing_is_left_of_it(stage, attack):
    print(stage.play(attack.play.__name__, attack.play, SECONDS))


def test_the_page_on_security_has_the_table_of_attacks():
    text = PAGE.read_text(encoding="utf-8")
    assert page_with_table(text) == text, "make docs writes it"
