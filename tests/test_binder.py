"""binder/: read here as Binder reads it, because a mistake there shows only at somebody's launch.

The launch itself is `make test-binder`: it installs some gigabytes, which is too much for every run of the tests.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from labkit import paths
from tests.tools import tool

ROOT = paths.ROOT
BINDER = ROOT / "binder"
CPU_WHEELS = "--extra-index-url https://download.pytorch.org/whl/cpu"


def lines(file: Path) -> list[str]:
    text = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in text if line]


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")


def pins(requirements: list[str]) -> dict[str, str]:
    exact = (re.fullmatch(r"([\w.-]+)==([\w.+]+)( *;.*)?", line) for line in requirements)
    return {name_of(match[1]): match[2] for match in exact if match}


def test_every_line_is_an_exact_pin_or_the_cpu_wheels():
    found = lines(BINDER / "requirements.txt")
    assert found[0] == CPU_WHEELS
    assert len(pins(found)) == len(found) - 1


def test_no_line_refers_to_the_repository():
    """With a local reference Binder copies the repository first, and installs torch anew after every edit."""
    for line in lines(BINDER / "requirements.txt"):
        assert not re.match(r"(-e|-r|-c|--editable|--requirement|--constraint|\.|/|file:)", line), line


def test_the_versions_are_those_of_the_lock():
    locked = pins(lines(ROOT / "requirements.lock"))
    for name, version in pins(lines(BINDER / "requirements.txt")).items():
        assert version.removesuffix("+cpu") == locked[name], name


def test_all_that_labkit_needs_is_there_and_torch_is_the_cpu_build():
    pinned = pins(lines(BINDER / "requirements.txt"))
    assert {name_of(line) for line in lines(ROOT / "requirements.txt")} <= set(pinned)
    assert pinned["torch"].endswith("+cpu") and pinned["torchvision"].endswith("+cpu")
    assert not [name for name in pinned if name.startswith(("nvidia", "cuda", "triton"))]


def test_python_is_named_and_within_what_labkit_supports():
    assert (BINDER / "runtime.txt").read_text() == "python-3.11\n"


def test_no_file_is_there_that_would_silence_another():
    """An environment.yml would make Binder ignore requirements.txt and runtime.txt."""
    assert {file.name for file in BINDER.iterdir()} == {
        "requirements.txt",
        "runtime.txt",
        "postBuild",
        "start",
    }


@pytest.mark.parametrize("script", ["postBuild", "start"])
def test_the_scripts_are_executable_and_parse(script):
    assert os.access(BINDER / script, os.X_OK)
    assert (BINDER / script).read_text().startswith("#!/bin/bash\n")
    subprocess.run(["bash", "-n", BINDER / script], check=True)


def test_a_failing_post_build_step_fails_the_build(tmp_path):
    """Every command is replaced by one that records itself; the first one fails, and nothing may follow."""
    for command in ("pip", "rm", "jupyter", "python", "labkit"):
        fake = tmp_path / command
        fake.write_text(f'#!/bin/sh\necho "{command} $*" >>"{tmp_path}/calls"\n[ {command} != "$FAILING" ]\n')
        fake.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    run = {"env": {"PATH": path, "FAILING": ""}, "cwd": tmp_path}

    assert subprocess.run([BINDER / "postBuild"], **run).returncode == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "pip install --no-deps ." and calls[-1] == "labkit doctor"

    (tmp_path / "calls").unlink()
    run["env"]["FAILING"] = "pip"
    assert subprocess.run([BINDER / "postBuild"], **run).returncode != 0
    assert (tmp_path / "calls").read_text().splitlines() == ["pip install --no-deps ."]


def test_start_sets_the_environment_and_becomes_the_command_it_is_given():
    code = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['LABKIT_OFFLINE'], os.getpid())"
    child = subprocess.Popen([BINDER / "start", sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.communicate()[0].split() == ["2", "1", str(child.pid)]


# --- the rehearsal, tools/binder.py ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def rehearsal():
    return tool("binder")


def test_without_the_cpu_index_the_plain_builds_of_the_same_versions_stand_in(rehearsal, tmp_path):
    text = (BINDER / "requirements.txt").read_text()
    assert rehearsal.requirements(text, reachable=True) == text
    (tmp_path / "plain.txt").write_text(rehearsal.requirements(text, reachable=False))
    plain = lines(tmp_path / "plain.txt")
    assert len(pins(plain)) == len(plain)
    assert pins(plain) == {
        name: version.removesuffix("+cpu") for name, version in pins(lines(BINDER / "requirements.txt")).items()
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not keep to this limit")
def test_the_cap_stops_a_process_that_asks_for_more(rehearsal):
    def ask(limit: float) -> int:
        command = rehearsal.capped([sys.executable, "-c", "bytearray(400_000_000)"], limit)
        return subprocess.run(command, capture_output=True).returncode

    assert ask(800e6) == 0 and ask(300e6) == 1


def test_the_rehearsal_inherits_neither_this_python_nor_the_settings_of_labkit(rehearsal, monkeypatch):
    for name in ("PYTHONPATH", "VIRTUAL_ENV", "LABKIT_DATA"):
        monkeypatch.setenv(name, "/nowhere")
    env = rehearsal.environment()
    assert "/nowhere" not in env.values()
    assert env["PATH"].startswith(str(rehearsal.ENV / "bin"))
