"""Commands run as they would alone: streams, arguments, exit codes, signals; and what is said of what they did.

These scripts have no torch, or a stub of it, so that they start at once.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from headforce import HeadforceError
from headforce.cli import main
from headforce.run.launcher import Finished, execute, resolved
from headforce.run.settings import RunSettings

SETTINGS = RunSettings("self_forcing")
ROOT = Path(__file__).parents[2]


def write(folder, name, text):
    (folder / name).write_text(text)
    return str(folder / name)


def run(*command, settings=SETTINGS):
    return execute([str(word) for word in command], settings)


def code(finished):
    with pytest.raises(HeadforceError) as caught:
        finished.check()
    return caught.value


def test_words_for_the_interpreter():
    assert resolved(["python", "-u", "a.py"]) == [sys.executable, "-u", "a.py"]
    assert resolved(["a.py", "-x"]) == [sys.executable, "a.py", "-x"]
    assert resolved(["torchrun", "a.py"]) == ["torchrun", "a.py"]
    assert resolved(["/opt/bin/python", "a.py"]) == ["/opt/bin/python", "a.py"]


def test_the_script_sees_what_it_would_see_alone(tmp_path, capfd):
    write(tmp_path, "beside.py", "NAME = 'beside'")
    script = write(
        tmp_path,
        "script.py",
        "import json, sys, beside\n"
        "found = [__name__, sys.argv[1:], beside.NAME, __file__, sys.path, sys.modules['__main__'].__file__]\n"
        "print(json.dumps(found)); print('to stderr', file=sys.stderr)",
    )
    alone = subprocess.run([sys.executable, script, "--a", "b c"], capture_output=True, text=True, check=True)
    assert run("python", script, "--a", "b c").code == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == json.loads(alone.stdout)
    assert json.loads(out)[:3] == ["__main__", ["--a", "b c"], "beside"]
    assert err == "to stderr\n"


def test_stdin_is_the_scripts(tmp_path):
    script = write(tmp_path, "script.py", "import sys; print(sys.stdin.read().upper())")
    line = "from headforce.run.launcher import execute; from headforce.run.settings import RunSettings; import sys;"
    done = subprocess.run(
        [sys.executable, "-c", f"{line} execute(['python', sys.argv[1]], RunSettings('self_forcing'))", script],
        input="a line",
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout == "A LINE\n"


def test_another_sitecustomize_runs_too(tmp_path, capfd, monkeypatch):
    write(tmp_path, "sitecustomize.py", "import os; os.environ['THEIRS'] = 'ran'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run("python", "-c", "import os, sitecustomize; print(os.environ['THEIRS'], sitecustomize.__file__)")
    assert capfd.readouterr().out == f"ran {tmp_path / 'sitecustomize.py'}\n"


def test_exit_codes_are_passed_on():
    assert run("python", "-c", "raise SystemExit(7)").code == 7
    assert run("python", "-c", "1 / 0").code == 1
    assert run("python", "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)").code == 128 + signal.SIGKILL


def test_a_signal_is_passed_on(tmp_path):
    ready = tmp_path / "ready"
    script = write(
        tmp_path,
        "script.py",
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)",
    )
    command = subprocess.Popen(
        [sys.executable, "-m", "headforce", "run", "--policy", "self_forcing", "--", "python", script],
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    while not ready.exists():
        assert command.poll() is None
        time.sleep(0.05)
    command.terminate()
    assert command.wait(30) == 5
    command.stderr.close()


def test_the_commands_own_handlers_come_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    run("python", "-c", "")
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_program_that_is_not_there():
    with pytest.raises(HeadforceError) as caught:
        run("no-such-program")
    assert caught.value.code == "HF-RUN-START"


@pytest.mark.parametrize("options", [[], ["-I"], ["-E"]])
def test_a_script_without_torch_has_not_worked(options):
    finished = run("python", *options, "-c", "")
    assert (finished.code, finished.processes) == (0, [])
    assert code(finished).code == "HF-RUN-NOTHING"


def test_an_interpreter_without_headforce(tmp_path):
    write(tmp_path, "torch.py", "LOADED = True")
    script = write(
        tmp_path, "script.py", "import sys\nsys.modules['headforce'] = None\nimport torch\nassert torch.LOADED"
    )
    finished = run("python", script)
    assert finished.code == 0
    refusal = code(finished)
    assert refusal.code == "HF-RUN-NOTHING"
    assert f"{sys.executable} cannot import headforce" in refusal.found


def test_torch_that_is_not_there_is_not_there(tmp_path):
    script = write(
        tmp_path,
        "script.py",
        "import sys\nsys.path = [p for p in sys.path if 'site-packages' not in p]\n"
        "try:\n    import torch\nexcept ModuleNotFoundError as error:\n    sys.exit(9 if error.name == 'torch' else 1)",
    )
    assert run("python", script).code == 9


def model(**changes):
    sites = {"rewritten": 2, "refused": 0, "excluded": 2}
    fields = {"name": "Model", "passes": 3, "launches": 6, "misses": 0, "refusal": "", "sites": sites}
    return {**fields, **changes}


def finished(*models, mode="owned", called=(), compiled=()):
    record = {"models": list(models), "called": list(called), "compiled": list(compiled)}
    return Finished([], replace(SETTINGS, mode=mode), 0, 1.0, [record])


def test_what_counts_as_done():
    finished(model()).check()
    finished(model(launches=0), model()).check()
    finished(model(launches=0), mode="eager").check()
    assert code(finished(model(launches=0))).code == "HF-RUN-NOTHING"
    assert "Model without a cache" in code(finished(model(launches=0))).found
    assert code(finished(model(passes=0, launches=0), mode="eager")).code == "HF-RUN-NOTHING"
    assert code(finished(model(misses=2), mode="view")).code == "HF-EAGER"
    refusal = code(finished(model(), model(refusal="[HF-MASK]: found a mask")))
    assert (refusal.code, "HF-MASK" in refusal.found) == ("HF-RUN-REFUSED", True)


def test_what_was_seen_is_named():
    refusal = code(finished(called=["Vae", "TextEncoder"], compiled=["Wrapper"]))
    assert refusal.code == "HF-RUN-NOTHING"
    assert refusal.found == "calls of Vae, TextEncoder; torch.compile by the script of Wrapper"


def test_settings_travel_in_the_environment(monkeypatch, tmp_path):
    policy = Path(write(tmp_path, "p.yaml", "headforce: 1\nclasses: {a: native()}\ndefault: a\n"))
    monkeypatch.chdir(tmp_path)
    settings = replace(RunSettings("p.yaml", inner="eager", seed=3).checked(), records="there")
    assert settings.policy == str(policy)
    environment = settings.environment({"PYTHONPATH": "mine", "HOME": "home"})
    assert environment["PYTHONPATH"].split(os.pathsep)[1:] == ["mine"]
    assert (environment["PYTHONHASHSEED"], environment["HOME"]) == ("3", "home")
    monkeypatch.setenv("HEADFORCE_RUN", environment["HEADFORCE_RUN"])
    assert RunSettings.from_environment() == settings
    assert settings.options == {"inner": "eager"}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--inner", "egaer"], "HF-OPTION"),
        (["--target", "spda"], "HF-TARGET"),
        (["--verify", "sites"], "HF-OPTION"),
        (["--report", "no/such/folder/report.json"], "report.json"),
    ],
)
def test_what_is_refused_before_the_script_begins(wrong, says, tmp_path):
    made = tmp_path / "made"
    done = CliRunner().invoke(main, ["run", "--policy", "longlive", *wrong, "--", "touch", str(made)])
    assert done.exit_code == (1 if "--report" in wrong else 2)
    assert says in done.stderr
    assert not made.exists()


@pytest.mark.parametrize(("wrong", "says"), [(["--layout", "XYZ"], "HF-VIDEO"), (["--chunks", "3xx"], "HF-SCHEDULE")])
def test_what_is_refused_before_two_scripts_begin(wrong, says, tmp_path):
    made = tmp_path / "made"
    command = ["compare", "--policy", "longlive", "--video", "*.pt", "--out", str(tmp_path / "out"), *wrong]
    done = CliRunner().invoke(main, [*command, "--", "touch", str(made)])
    assert done.exit_code == 2
    assert says in done.stderr
    assert not made.exists()


def test_a_policy_that_is_not_there_is_refused_at_once():
    with pytest.raises(HeadforceError) as caught:
        RunSettings("no/such.yaml").checked()
    assert caught.value.code == "HF-POLICY-FILE"


def test_a_folder_called_like_a_published_system_is_not_its_policy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "longlive").mkdir()
    assert RunSettings("longlive").checked().policy == "longlive"
