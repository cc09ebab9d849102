"""`conformance doctor` as users run it: a real process, on environments that are broken by a module
in front of the installed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT, schemas

pytestmark = pytest.mark.slow

HANGS = "import time\ntime.sleep(600)\n"
PATIENCE = "8"


def environment(front: Path, **variables: str) -> dict[str, str]:
    """An environment in which modules in the folder `front` hide those that are installed."""
    path = os.pathsep.join([str(front), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", **variables}


def doctor(front: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "conformance", "doctor", *options],
        cwd=front, capture_output=True, text=True, timeout=180,
        env=environment(front, **variables),
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def told(front: Path, *options: str, **variables: str) -> tuple[int, Any]:
    done = doctor(front, "--json", *options, **variables)
    document = json.loads(done.stdout)
    schemas.check("doctor", document)
    return done.returncode, document


def package(document: Any, name: str) -> Any:
    return next(one for one in document["packages"] if one["name"] == name)


def assessable(document: Any) -> dict[str, str]:
    return {one["name"]: one["assessable"] for one in document["profiles"]}


def test_this_machine_is_described_in_80_columns(tmp_path: Path) -> None:
    done = doctor(tmp_path, HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) < 80
    said = " ".join(done.stdout.split())
    for words in ("torch", "a process group of one works", "core (default) yes", "can be assessed"):
        assert words in said


def test_everything_is_in_the_document(tmp_path: Path) -> None:
    model = tmp_path / "hub" / "models--mine--tiny" / "snapshots" / "abc"
    model.mkdir(parents=True)
    (model / "tokenizer.json").write_text("{}")
    status, document = told(tmp_path, HF_HOME=str(tmp_path), HF_HUB_CACHE="")
    assert (status, document["assessable"]) == (0, True)
    assert document["distributed"]["facts"]["gloo"] is True
    assert document["hub"]["facts"]["writable"] is True
    assert document["huggingFaceCache"]["facts"] == {
        "root": str(tmp_path / "hub"),
        "exists": True,
        "models": [{"hub": "mine/tiny", "config": False, "tokenizer": True}],
    }
    assert {state["state"] for state in document["packages"]} <= {"ok", "missing"}


@pytest.mark.parametrize(
    ("source", "trouble"),
    [
        ("raise OSError('libcudart.so.12: no such file')", "raises OSError: libcudart.so.12"),
        ("raise SystemExit(3)", "raises SystemExit: 3"),
        ("print('hello'); import os; os._exit(0)", "which exited with status 0"),
        ("import os; os.kill(os.getpid(), 11)", "which was killed by SIGSEGV"),
        ("import os; os.closerange(3, 256); " + HANGS, "closes every file of its process"),
        (HANGS, f"does not answer within {PATIENCE} s"),
        ("import no_such_dependency", "raises ModuleNotFoundError: No module named 'no_such"),
    ],
)
def test_a_broken_torch_is_a_line(tmp_path: Path, source: str, trouble: str) -> None:
    (tmp_path / "torch.py").write_text(source)
    status, document = told(tmp_path, "--timeout", PATIENCE)
    torch = package(document, "torch")
    assert (status, torch["state"]) == (1, "late" if source == HANGS else "broken")
    assert trouble in torch["trouble"]
    assert set(assessable(document).values()) == {"no"}
    assert package(document, "transformers")["state"] == "unknown"
    assert package(document, "safetensors")["state"] == "ok", "the others are tried all the same"
    assert document["hub"]["facts"] is not None
    assert all("torch" in one["why"][0] for one in document["profiles"])
    wanted = "--timeout" if source == HANGS else "torch"
    assert all(wanted in one["remedies"][0] for one in document["profiles"])


def test_a_crash_between_good_packages_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "transformers.py").write_text("import os; os.abort()")
    (tmp_path / "hypothesis.py").write_text("import os; os._exit(4)")
    (tmp_path / "securesystemslib.py").write_text("1 / 0")
    status, document = told(tmp_path)
    assert status == 1
    assert package(document, "transformers")["trouble"] == (
        "ends its process, which was killed by SIGABRT"
    )
    assert package(document, "hypothesis")["trouble"] == (
        "ends its process, which exited with status 4"
    )
    assert package(document, "securesystemslib")["state"] == "broken"
    sound = ("torch", "accelerate", "tokenizers", "sentencepiece", "matplotlib")
    assert [package(document, name)["state"] for name in sound] == ["ok"] * len(sound)
    assert document["distributed"]["facts"]["gloo"] is True


def test_a_release_out_of_range_is_named(tmp_path: Path) -> None:
    (tmp_path / "transformers.py").write_text(
        "__version__ = '4.39.3'\nAutoModelForCausalLM = AutoTokenizer = None\n"
    )
    done = doctor(tmp_path)
    said = " ".join(done.stdout.split())
    assert done.returncode == 1
    assert "transformers 4.39.3 should be >=4.40,<6" in said
    assert 'to mend: pip install "transformers>=4.40,<6"' in said
    assert "CANNOT be assessed here" in said


def test_a_hub_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, document = told(tmp_path, "--hub", str(tmp_path / "file" / "hub"))
    assert status == 1
    assert document["hub"]["facts"]["writable"] is False
    assert assessable(document)["core"] == "no"
    assert "cannot be written to" in document["profiles"][0]["why"][0]


def test_an_unusable_recipe_is_a_line(tmp_path: Path) -> None:
    status, document = told(tmp_path, CONFORMANCE_RECIPES=str(tmp_path / "absent"))
    assert status == 1
    assert "raises InvalidRecipe: recipes" in document["hub"]["trouble"]


def test_bad_options_are_refused(tmp_path: Path) -> None:
    assert doctor(tmp_path, "--timeout", "0").returncode == 2


def test_an_interrupt_ends_everything(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    (tmp_path / "torch.py").write_text(f"open({str(begun)!r}, 'w').close()\n{HANGS}")
    running = subprocess.Popen(
        [sys.executable, "-m", "conformance", "doctor"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env=environment(tmp_path),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(running.pid, signal.SIGINT)
    output, _ = running.communicate(timeout=20)
    assert running.returncode == 130, output
    assert "Traceback" not in output
    assert not _children(tmp_path)


def _children(front: Path) -> list[int]:
    """Processes that find modules in this test's folder."""
    needle = str(front).encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if needle in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found
