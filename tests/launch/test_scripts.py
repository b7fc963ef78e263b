"""The launch scripts: they parse, pass flags that exist, and start again when they should; Slurm and gcloud are played."""

import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys

import pytest
import yaml
from absl import flags

from resnet_jax import flags as command_line
from resnet_jax.errors import EXIT_STOPPED, EXIT_USER_ERROR

REPOSITORY = pathlib.Path(__file__).parents[2]
LAUNCH = REPOSITORY / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
TEXTS = [*SCRIPTS, LAUNCH / "gke_jobset.yaml", LAUNCH / "Containerfile", *sorted((REPOSITORY / "docs/launch").glob("*.md"))]


def jobset():
    return yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())["spec"]


def pod():
    return jobset()["replicatedJobs"][0]["template"]["spec"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_pass_shellcheck(script):
    assert script.stat().st_mode & stat.S_IXUSR
    assert "set -euo pipefail" in script.read_text()
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed; `make lint` runs it")
    subprocess.run([shellcheck, script], check=True)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_config_flags_in_scripts_and_pages_exist(path):
    """Also: every --config=FILE is there, and train.py has every other flag of its command lines."""
    text = path.read_text()
    for file in re.findall(r"--config[= ]([\w./]+)", text):
        config = command_line.load_config_file(REPOSITORY / file)
        command_line._check_overrides(["train.py", *re.findall(r"--config\.[\w.]+=", text)], config)


def test_the_flags_of_train_exist():
    import train  # noqa: F401  (defines --workdir)

    given = set(re.findall(r"train\.py (?:\\\n\s*)?--(\w+)", (LAUNCH / "slurm.sh").read_text()))
    given |= set(re.findall(r"machine\.sh tpu --(\w+)", (LAUNCH / "tpu_pod.sh").read_text()))
    arguments = pod()["template"]["spec"]["containers"][0]["args"]
    given |= {re.match(r"--(\w+)", argument)[1] for argument in arguments}
    assert {"config", "workdir", "distributed"} <= given
    assert given - {"config"} <= set(flags.FLAGS)


def test_jobset_restarts_after_preemption_but_not_after_a_users_error():
    policy, job = jobset()["failurePolicy"], pod()
    assert policy["maxRestarts"] > 0
    assert policy["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    (rule,) = job["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    assert (rule["action"], codes["operator"], codes["values"]) == ("FailJob", "In", [EXIT_USER_ERROR])
    assert codes["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # a pod failure policy needs it
    assert job["backoffLimit"] == 0
    assert job["parallelism"] == job["completions"]


@pytest.fixture
def play(tmp_path):
    """Puts stand-ins for commands on the PATH, each a few lines of bash, and runs a script; returns it and the calls."""

    def run(script, *arguments, environment=None, **commands):
        log = tmp_path / "calls"
        for name, body in commands.items():
            (tmp_path / name).write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> {log}\n{body}\n')
            (tmp_path / name).chmod(0o755)
        env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STATE": str(tmp_path)} | (environment or {})
        done = subprocess.run([script, *arguments], env=env, capture_output=True, text=True, timeout=60)
        return done, log.read_text().splitlines() if log.exists() else []

    return run


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (EXIT_STOPPED, True), (EXIT_USER_ERROR, False), (1, False)])
def test_slurm_requeues_a_stopped_run_only(play, code, requeued):
    done, calls = play(
        LAUNCH / "slurm.sh",
        "--config=a b.py",
        srun=f'[[ ${{@: -1}} == "--config=a b.py" ]] || exit 99\nexit {code}',
        scontrol="",
        environment={"SLURM_JOB_ID": "7"},
    )
    assert done.returncode == code
    assert "train.py --distributed --config=a b.py" in calls[0]
    assert calls[1:] == (["scontrol requeue 7"] if requeued else [])


GCLOUD = """
shift 2  # compute tpus
case "$1 $2" in
  'queued-resources describe') cat "$STATE/request" ;;
  'queued-resources create') echo ACTIVE > "$STATE/request"; echo READY > "$STATE/slice" ;;
  'queued-resources delete') rm "$STATE/request" ;;
  'tpu-vm describe') cat "$STATE/slice" ;;
  'tpu-vm ssh') echo try >> "$STATE/tries"; source "$STATE/training" ;;
esac
"""
GIT = 'if [[ $1 == archive ]]; then touch "${3#--output=}"; fi'  # works where the project is no git checkout too
POD = {"TPU": "mine", "ZONE": "z", "TYPE": "v5litepod-16", "VERSION": "v", "POLL": "0"}


def test_a_preempted_slice_is_asked_for_again(play, tmp_path):
    (tmp_path / "training").write_text(
        'if (($(wc -l < "$STATE/tries") < 3)); then echo PREEMPTED > "$STATE/slice"; '
        'echo SUSPENDED > "$STATE/request"; exit 255; fi\n'
    )
    done, calls = play(LAUNCH / "tpu_pod.sh", "--config=a b.py", environment=POD, gcloud=GCLOUD, git=GIT)
    assert done.returncode == 0, done.stderr
    assert "ended with code 0" in done.stdout
    doing = [call.split()[3:5] for call in calls if call.startswith("gcloud") and "describe" not in call]
    attempt = [["queued-resources", "create"], ["tpu-vm", "scp"], ["tpu-vm", "ssh"]]
    assert doing == [*attempt, ["queued-resources", "delete"], *attempt, ["queued-resources", "delete"], *attempt]
    starts = [call for call in calls if "tpu-vm ssh" in call]
    assert all("--worker=all" in call for call in starts)
    assert "bash resnet_jax/launch/machine.sh tpu --distributed --config=a\\ b.py" in (tmp_path / "calls").read_text()
    assert all("--spot" in call and "--zone=z" in call for call in calls if "resources create" in call)


def test_a_run_that_fails_on_a_healthy_slice_ends(play, tmp_path):
    (tmp_path / "training").write_text(f"exit {EXIT_USER_ERROR}\n")
    done, _ = play(LAUNCH / "tpu_pod.sh", "--config=a", environment=POD, gcloud=GCLOUD, git=GIT)
    assert done.returncode == EXIT_USER_ERROR
    assert "delete mine --zone=z --force" in done.stdout
    assert (tmp_path / "tries").read_text().splitlines() == ["try"]


def test_a_failed_request_ends(play, tmp_path):
    (tmp_path / "request").write_text("FAILED\n")
    done, _ = play(LAUNCH / "tpu_pod.sh", environment=POD, gcloud=GCLOUD, git=GIT)
    assert done.returncode == 1
    assert "error: the request for v5litepod-16 in z failed" in done.stderr


def test_machine_trains_with_the_flags_in_the_environment_it_made(play, tmp_path):
    there = tmp_path / "code"
    (there / ".venv/bin").mkdir(parents=True)
    (there / "launch").mkdir()
    shutil.copy(LAUNCH / "machine.sh", there / "launch")
    python = there / ".venv/bin/python"
    python.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$JAX_PLATFORMS" "$PWD" "$@"\nexit {EXIT_STOPPED}\n')
    python.chmod(0o755)
    commands = {"nvidia-smi": "echo 'GPU 0: a GPU'", "make": ""}
    done, calls = play(there / "launch/machine.sh", "cuda", "--a=b c", environment={"PYTHON": "mypython"}, **commands)
    assert done.returncode == EXIT_STOPPED
    assert done.stdout.splitlines() == ["cuda,cpu", str(there), "train.py", "--a=b c"]
    assert calls[-1] == "make setup PYTHON=mypython EXTRA=cuda,gcs"


def test_machine_refuses_a_machine_without_a_gpu(play):
    done, calls = play(LAUNCH / "machine.sh", "cuda", make="", **{"nvidia-smi": "exit 9"})
    assert done.returncode == EXIT_USER_ERROR
    assert "error: no cuda device" in done.stderr
    assert not any(call.startswith("make") for call in calls)
