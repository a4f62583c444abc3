"""A notebook, run by a real kernel: runs, progress, errors, an interrupted run."""

import os
from pathlib import Path

import pytest
from support.processes import pids_with_files_in, ray_folder
from support.waiting import wait_for

pytest.importorskip("ipykernel")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

NOTEBOOK = Path(__file__).parent.parent / "docs" / "from-python.ipynb"
WRONG = "fedray.run(model=net, parties={'a': (test[0][:, :3], test[1])})"
INTERRUPTED = """
import os, signal
def stop(progress):
    if progress.round > 1:
        os.killpg(os.getpgid(0), signal.SIGINT)
fedray.run(model=net, parties=parties, rounds=10**6, watch=stop, name="stopped")
"""
AGAIN = """
async def run():
    return fedray.run(model=net, parties=parties, test=test, rounds=1)
again = await run()
print(len(again.history), fedray.federation.connection._LOCAL.is_started)
"""


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """The notebook of the docs with more cells, run; and Ray's folder."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    new = [nbformat.v4.new_code_cell(text) for text in (WRONG, INTERRUPTED, AGAIN)]
    notebook.cells[-2:-2] = new
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    with ray_folder() as folder:
        monkeypatch.setenv("RAY_TMPDIR", str(folder))
        client = nbclient.NotebookClient(
            notebook, timeout=300, kernel_name="python3", allow_errors=True
        )
        client.execute(cwd=str(tmp_path), env=dict(os.environ))
        yield [cell for cell in notebook.cells if cell.cell_type == "code"], folder


def printed(outputs):
    return "".join(o.text for o in outputs if o.get("name") == "stdout")


def test_a_notebook_runs_federations_and_survives_errors_and_interrupts(executed):
    cells, folder = executed
    outputs = [cell.outputs for cell in cells]
    errors = [o for cell in outputs for o in cell if o.output_type == "error"]
    assert [error.ename for error in errors] == ["JoinFailed", "Stopped"], outputs
    for error in errors:  # not fifty lines of Ray
        assert len("\n".join(error.traceback).splitlines()) < 6
    assert "resume=True" in errors[1].traceback[0]
    # a warning about this machine (little shared memory ...) may stand beside them
    live, shown = (o for o in outputs[1] if o.output_type != "stream")
    assert live.output_type == "display_data"
    assert "done: 4 of 4 rounds" in live.data["text/html"]
    assert live.data["text/plain"].startswith("done: 4 of 4 rounds")
    assert "accuracy" in shown.data["text/html"]
    assert shown.data["text/plain"].startswith("Result(folder=")
    assert "Evaluation(" in printed(outputs[2])
    assert "of party a: got 200 samples x and 5 targets y" in printed(outputs[4])
    assert printed(outputs[7]) == "1 True\n"
    wait_for(lambda: not pids_with_files_in(folder), "Ray ends with the kernel")
