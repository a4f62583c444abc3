"""The wheel, installed into a clean environment, runs what `fedray init` writes."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IN_WHEEL = (
    "fedray/py.typed",
    "fedray/data/mnist_5000.npz",
    "fedray/cli/template/config.yaml",
    "fedray/cli/template/README.md",
    "fedray/runs_page/page/page.js",
    "fedray/service/page/docs.js",
)


def run(*words: object, **settings) -> str:
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=False, **settings
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Folder with the wheel and the sdist that `make package` would make."""
    source = tmp_path_factory.mktemp("source")
    keep_out = shutil.ignore_patterns(".*", "dist", "build", "*.egg-info", "tests")
    shutil.copytree(ROOT, source / "fedray", ignore=keep_out)
    out = tmp_path_factory.mktemp("dist")
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", out)
    run(*build, source / "fedray")
    return out


@pytest.mark.slow
def test_the_wheel_holds_all_that_is_not_python_too(built):
    (wheel,) = built.glob("fedray-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert set(IN_WHEEL) <= names
    assert not [name for name in names if name.startswith(("tests/", "jobs/"))]
    (sdist,) = built.glob("fedray-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*IN_WHEEL, "pyproject.toml", "README.md", "LICENSE"} <= names


@pytest.mark.slow
def test_the_wheel_runs_what_init_writes_in_a_clean_environment(built, tmp_path):
    place = tmp_path / "clean"
    venv.create(place, with_pip=True)
    python, fedray = place / "bin" / "python", place / "bin" / "fedray"
    (wheel,) = built.glob("fedray-*.whl")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    _lend_dependencies(python)
    env = {**os.environ, "HOME": str(tmp_path)}
    env.pop("PYTHONPATH", None)
    env.pop("RAY_ADDRESS", None)
    where = run(
        python, "-c", "import fedray; print(fedray.__file__)", cwd=tmp_path, env=env
    )
    assert where.startswith(str(place))
    run(fedray, "init", "project", cwd=tmp_path, env=env)
    told = run(fedray, "run", "project/config.yaml", cwd=tmp_path, env=env)
    assert "3 of 3    2 of 2" in told
    assert (tmp_path / ".fedray/runs/config/global_model.pt").exists()


def _lend_dependencies(python: Path) -> None:
    """Let the clean environment import this one's packages, but not its fedray.

    Installed anew, they would be a download of 2 GB. A .pth within the added folder,
    by which a fedray under development may be found, is not read.
    """
    script = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    folder = Path(run(python, "-c", script).strip())
    paths = sysconfig.get_paths()
    lent = "\n".join(dict.fromkeys((paths["purelib"], paths["platlib"])))
    (folder / "lent.pth").write_text(lent + "\n")
