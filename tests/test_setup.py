"""Set-up: `make lab` and `make test` rehearsed with stand-ins for Python and uv, and the real server once."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

import labkit
from labkit import paths

ROOT = paths.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOOLS = ("sh", "cat", "cksum", "date", "tail", "sed", "rm", "mkdir", "dirname", "cp", "head")

# A stand-in for Python and for uv: writes down how it was called, makes a venv, fails where it is told to.
FAKE = """#!/bin/sh
[ "$1" = -c ] || [ "$1" = --version ] || echo "NAME $*" >>"$CALLS"
case "$*" in
    --version) echo "Python 3.12.9" ;;
    "-c "*) case "$0" in *old*) exit 1 ;; esac ;;
    "venv "*|"-m venv "*) mkdir -p .venv/bin; cp "$FAKES/python3" .venv/bin/python ;;
    *" $FAILING"*) echo "ERROR: the network is down"; exit 1 ;;
esac
"""


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Project:
    """A copy of what tools/setup.sh reads, and a PATH that holds stand-ins and a few plain tools only."""

    def __init__(self, root: Path, uv: bool = False) -> None:
        self.root, self.fakes = root / "project", root / "bin"
        (self.root / "tools").mkdir(parents=True)
        self.fakes.mkdir()
        shutil.copy(ROOT / "tools" / "setup.sh", self.root / "tools")
        for name in ("requirements.txt", "requirements.lock", "pyproject.toml", "setup.py"):
            (self.root / name).write_text(name)
        for name in TOOLS:
            (self.fakes / name).symlink_to(shutil.which(name))
        for name in ("python3", "python-old", *(["uv"] if uv else [])):
            (self.fakes / name).write_text(FAKE.replace("NAME", "uv" if name == "uv" else "python"))
            (self.fakes / name).chmod(0o755)
        self.calls_file = root / "calls"

    def setup(self, goal: str, **env: str) -> subprocess.CompletedProcess:
        self.calls_file.write_text("")
        fakes = str(self.fakes)
        env = {"PATH": fakes, "FAKES": fakes, "CALLS": str(self.calls_file), "FAILING": "nothing"} | env
        script = self.root / "tools" / "setup.sh"
        return subprocess.run(["sh", script, goal], env=env, capture_output=True, text=True)

    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


PIP = "python -m pip install --disable-pip-version-check"
LAB = [f"{PIP} -r requirements.txt -c requirements.lock", f"{PIP} --no-deps -e ."]
TEST = [f"{PIP} -r requirements.lock", f"{PIP} --no-deps -e ."]


def test_the_first_run_installs_with_pip_and_times_each_step(project):
    done = project.setup("lab")
    assert done.returncode == 0, done.stderr
    assert project.calls() == ["python -m venv .venv", *LAB]
    assert len(re.findall(r"^set-up: .*: done in \d+ s$", done.stdout, re.M)) == 3


def test_the_second_run_does_nothing_and_lab_and_test_can_alternate(project):
    project.setup("lab")
    assert project.setup("lab").stdout == "set-up: nothing to do\n" and project.calls() == []
    project.setup("test")
    assert project.calls() == TEST
    for goal in ("lab", "test", "lab"):
        assert project.setup(goal).returncode == 0 and project.calls() == []


@pytest.mark.parametrize("name", ["requirements.txt", "requirements.lock", "pyproject.toml"])
def test_a_changed_requirement_installs_again_into_the_same_venv(project, name):
    project.setup("test")
    (project.root / name).write_text("changed")
    project.setup("lab")
    assert project.calls() == LAB
    project.setup("test")
    assert project.calls() == TEST


def test_a_half_done_change_is_not_taken_for_done_when_the_file_is_changed_back(project):
    project.setup("lab")
    (project.root / "requirements.txt").write_text("changed")
    assert project.setup("lab", FAILING="--no-deps").returncode == 1
    (project.root / "requirements.txt").write_text("requirements.txt")
    project.setup("lab")
    assert project.calls() == LAB


def test_uv_is_used_when_it_is_there(tmp_path):
    project = Project(tmp_path, uv=True)
    project.setup("test")
    pip = "uv pip install --python .venv/bin/python"
    venv = "uv venv --seed --python python3 .venv"
    assert project.calls() == [venv, f"{pip} -r requirements.lock", f"{pip} --no-deps -e ."]


def test_a_failed_step_says_which_and_why_and_is_tried_again(project):
    done = project.setup("test", FAILING="-r")
    assert done.returncode == 1
    assert "install the exact versions of requirements.lock" in done.stderr and "FAILED after" in done.stderr
    assert "ERROR: the network is down" in done.stderr
    assert project.calls() == ["python -m venv .venv", TEST[0]]
    assert project.setup("test").returncode == 0
    assert project.calls() == TEST


def test_no_suitable_python_is_one_sentence(project):
    done = project.setup("lab", PYTHON="python-old")
    assert done.returncode == 1 and project.calls() == []
    assert done.stderr.startswith("set-up: no suitable Python found (tried: python-old).")
    assert done.stderr.count("\n") == 1


def test_a_venv_that_does_not_run_is_made_anew(project):
    project.setup("lab")
    (project.root / ".venv" / "bin" / "python").unlink()
    assert project.setup("lab").returncode == 0
    assert project.calls() == ["python -m venv .venv", *LAB]


def ask(url: str, token: str | None) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Authorization": f"token {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, ""


@pytest.fixture
def headless_lab(tmp_path):
    """`make lab HEADLESS=1` in a process group of its own; the set-up is left out, this Python stands in."""
    folders = ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    env = {name: value for name, value in os.environ.items() if "MAKE" not in name}  # an outer make's flags
    env |= {name: str(tmp_path / name) for name in folders}
    make = ["make", "lab", "HEADLESS=1", "--assume-old=setup", f"PY={sys.executable}"]
    with (tmp_path / "log").open("w") as log:
        lab = subprocess.Popen(
            make, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    yield lab, tmp_path / "log"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(lab.pid, signal.SIGKILL)
    lab.wait()


def group_is_gone(group: int, seconds: float = 20) -> bool:
    for _ in range(int(seconds * 10)):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_make_lab_headless_serves_the_first_lesson_to_the_token_alone(headless_lab):
    lab, log = headless_lab
    url = lab.stdout.readline().strip()
    found = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/lab/tree/notebooks/00_start_here\.ipynb\?token=(.{20,})", url)
    assert found, f"{url}\n{log.read_text()}"
    server, token = found.groups()

    contents = f"{server}/api/contents/notebooks/00_start_here.ipynb"
    assert ask(f"{server}/api/status", token)[0] == 200
    status, text = ask(contents, token)
    assert status == 200 and json.loads(text)["type"] == "notebook"
    assert ask(f"{server}/api/status", None)[0] == 403
    assert ask(contents, "guess")[0] == 403
    page = ask(f"{server}/lab", token)[1]
    assert '"news": {"disabled": true}' in page
    assert '"disabledExtensions": ["@jupyterlab/apputils-extension:announcements"]' in page  # nor asks about them

    lab.terminate()  # make alone: it tells tools/lab.py, which must not leave the server behind
    lab.wait(timeout=30)
    assert group_is_gone(lab.pid)


def test_a_checkout_without_the_first_lesson_is_a_sentence(tmp_path):
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "lab.py", tmp_path / "tools")
    done = subprocess.run([sys.executable, tmp_path / "tools" / "lab.py"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("notebooks/00_start_here.ipynb is missing; get it back with: git checkout")


def test_all_steps_run_even_after_a_failure_and_the_summary_names_it(tmp_path, capfd):
    check = tool("check")
    todo = [(name, [sys.executable, "-c", f"raise SystemExit({code})"]) for name, code in (("bad", 3), ("good", 0))]
    assert check.run(todo, tmp_path) == 1
    out = capfd.readouterr().out
    assert re.search(r"FAILED  bad +\d+\.\d s  exit code 3, see == bad above", out)
    assert re.search(r"passed  good +\d+\.\d s$", out, re.M)
    assert out.splitlines()[-1] == "steps: 1 passed, 1 failed"
    assert check.run(todo[1:], tmp_path) == 0


def test_the_steps_are_all_there_and_missing_lessons_fail(tmp_path):
    check = tool("check")
    steps = dict(check.steps(ROOT))
    assert list(steps) == ["ruff check", "ruff format", "mypy", "pytest", "notebooks"]
    lessons = {f"notebooks/{file.name}" for file in (ROOT / "notebooks").glob("*.ipynb")}
    assert lessons <= set(steps["notebooks"])
    assert "--nbval" in steps["notebooks"]

    empty = dict(check.steps(tmp_path))["notebooks"]
    assert subprocess.run(empty, cwd=tmp_path, capture_output=True).returncode != 0


def test_ci_runs_make_test_and_passes_its_exit_code_on(tmp_path):
    fake = tmp_path / "make"
    fake.write_text('#!/bin/sh\necho "make $*"\nexit "$CODE"\n')
    fake.chmod(0o755)
    for code in (0, 2):
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CODE": str(code)}
        done = subprocess.run(["bash", ROOT / ".ci" / "run"], env=env, capture_output=True, text=True)
        assert done.returncode == code
        assert done.stdout.startswith("make test\n")
        assert ("make test failed (exit code 2)" in done.stdout) == (code != 0)


# A stand-in for apt-get, which installs a stand-in for chromium: at once, after an update, a broken one, or never.
APT = """#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
echo "$*" >>"$CALLS"
case "$APT $1" in
    "at-once install" | "updated install" | "broken install")
        [ "$APT" = broken ] && code=1 || code=0
        printf '#!/bin/sh\\nexit %s\\n' "$code" >"$FAKES/chromium"
        chmod +x "$FAKES/chromium" ;;
    "after-update install") exit 100 ;;
    "after-update update") sed -i s/after-update/updated/ "$0" ;;
    *) exit 100 ;;
esac
"""
INSTALL = "install -y --no-install-recommends chromium"


@pytest.fixture
def browser(tmp_path):
    """`browser(apt)` runs tools/browser.sh where apt-get behaves so; returns its exit code, words and calls."""
    root, fakes, calls = tmp_path / "project", tmp_path / "bin", tmp_path / "calls"
    (root / "tools").mkdir(parents=True)
    fakes.mkdir()
    calls.touch()
    shutil.copy(ROOT / "tools" / "browser.sh", root / "tools")
    for name in ("sh", "dirname", "mkdir", "chmod", "sed"):
        (fakes / name).symlink_to(shutil.which(name))

    def run(apt: str = "", user: int = 0, **env: str) -> tuple[int, str, list[str]]:
        scripts = {"id": f"#!/bin/sh\necho {user}\n"} | ({"apt-get": APT.replace("$APT", apt)} if apt else {})
        for name, text in scripts.items():
            (fakes / name).write_text(text)
            (fakes / name).chmod(0o755)
        env = {"PATH": str(fakes), "FAKES": str(fakes), "CALLS": str(calls)} | env
        done = subprocess.run(["sh", root / "tools" / "browser.sh"], env=env, capture_output=True, text=True)
        assert done.stderr == ""
        return done.returncode, done.stdout, calls.read_text().splitlines()

    return run


def test_a_browser_is_installed_once_and_the_package_lists_are_fetched_only_if_need_be(browser):
    assert browser("at-once")[::2] == (0, [INSTALL])
    assert browser("at-once") == (0, "", [INSTALL])  # it is there now: nothing is said, nothing is done


def test_a_browser_that_apt_does_not_know_yet_is_installed_after_an_update(browser):
    assert browser("after-update")[::2] == (0, [INSTALL, "update", INSTALL])


@pytest.mark.parametrize("apt, user", [("", 0), ("at-once", 1000), ("never", 0), ("broken", 0)])
def test_where_no_browser_can_be_had_one_sentence_says_that_its_tests_are_skipped(browser, apt, user):
    code, words, calls = browser(apt, user)
    assert code == 1
    assert "tests/browser is skipped." in words.splitlines()[-1]
    assert bool(calls) == (apt != "" and user == 0)


@pytest.mark.parametrize("code, required", [(0, "1"), (1, None)])
def test_the_tests_of_a_browser_that_is_there_may_not_be_skipped(tmp_path, monkeypatch, code, required):
    monkeypatch.setenv("LABKIT_REQUIRE_BROWSER", "")  # so that it is put back
    monkeypatch.delenv("LABKIT_REQUIRE_BROWSER")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "browser.sh").write_text(f"exit {code}")
    tool("check").browser(tmp_path)
    assert os.environ.get("LABKIT_REQUIRE_BROWSER") == required


def test_a_browser_can_be_named(browser, tmp_path):
    (tmp_path / "mine").write_text("#!/bin/sh\n")
    (tmp_path / "mine").chmod(0o755)
    assert browser(LABKIT_CHROMIUM=str(tmp_path / "mine")) == (0, "", [])


def read(name: str) -> list[str]:
    text = (line.split("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in text if line]


def test_the_lock_holds_a_version_in_range_of_everything():
    locked = {pin.name: pin for pin in map(Requirement, read("requirements.lock"))}
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in locked.values())
    for wanted in map(Requirement, [*read("requirements.txt"), *PROJECT["optional-dependencies"]["test"]]):
        version = str(locked[wanted.name].specifier).removeprefix("==")
        assert wanted.specifier.contains(version), wanted
        assert locked[wanted.name].marker is None, wanted


def test_the_lock_names_no_host_and_no_test_tool_is_asked_of_users():
    assert "://" not in (ROOT / "requirements.lock").read_text(encoding="utf-8")
    users = {Requirement(line).name for line in read("requirements.txt")}
    assert not users & {Requirement(line).name for line in PROJECT["optional-dependencies"]["test"]}


def test_torch_keeps_off_the_version_without_a_twin():
    torch = next(r for r in map(Requirement, read("requirements.txt")) if r.name == "torch")
    assert not torch.specifier.contains("2.13.0") and not torch.specifier.contains("2.13.0+cpu")
    assert torch.specifier.contains("2.11.0")


def test_one_version_everywhere():
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    assert cited[1] == PROJECT["version"] == labkit.__version__


def test_a_wheel_carries_the_data_and_finds_it(tmp_path):
    """The plain, non-editable install, as Binder does it; on a copy, because a build leaves files behind."""
    copy, site = tmp_path / "copy", tmp_path / "site"
    shutil.copytree(ROOT / "labkit", copy / "labkit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (copy / "data" / "checkpoints").mkdir(parents=True)
    (copy / "data" / "checkpoints" / "tiny.json").write_text("{}")
    build = "import setuptools.build_meta as b; b.build_wheel('wheel')"
    (copy / "wheel").mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    zipfile.ZipFile(next((copy / "wheel").glob("*.whl"))).extractall(site)

    env = os.environ | {"PYTHONPATH": str(site)}
    ask = "from labkit import paths; print(paths.DATA); print(paths.CHECKPOINTS / 'tiny.json')"
    found = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path, env=env, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert found[0] == str(site / "labkit" / "_data")
    assert Path(found[1]).is_file()


def test_labkit_data_names_another_folder(tmp_path):
    ask = "from labkit import paths; print(paths.DATA, paths.RESULTS)"
    env = os.environ | {"LABKIT_DATA": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", ask], cwd=ROOT, env=env, check=True, capture_output=True, text=True
    ).stdout.split()
    assert found == [str(tmp_path), str(tmp_path / "results")]


def test_a_missing_data_folder_is_a_sentence():
    with pytest.raises(labkit.errors.LabkitError, match="LABKIT_DATA"):
        paths.need(paths.DATA / "nothing-here")
