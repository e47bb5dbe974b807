"""Reward functions in processes of their own: sent, imported, ended when they hang or die."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from tokenry.core.errors import InputError
from tokenry.learn.rewards.calling import Local, RewardCallError, Worker, caller_of
from tokenry.learn.rewards.worker import Signature, plain_value, signature_of

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
CODE = """
import os, subprocess, sys, time

def letters(prompt, completion):
    print("noise on the stream of answers")
    return len(completion)

def pid(prompts, completions, **columns):
    return [os.getpid()]

def hang(prompt, completion):
    if "hang" in completion:
        own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open(f"{prompt}/pid", "w").write(str(own.pid))
        while True:
            pass
    return 1.0

def die(prompt, completion):
    os._exit(7)

def weather(prompts, completions, answer, tone="dry", **rest):
    raise KeyError("sun")

def reads(prompt, completion):
    return float(sys.stdin.read() == "")

def main_thread(prompt, completion):
    import threading
    return float(threading.current_thread() is threading.main_thread())

number = 3
"""


@pytest.fixture
def rules(tmp_path):
    (tmp_path / "rules.py").write_text(CODE)
    return lambda name: f"{tmp_path}/rules.py:{name}"


@pytest.fixture
def called():
    """`caller_of`, whose workers are ended."""
    callers = []

    def make(function, timeout=30.0):
        callers.append(caller_of(function, timeout))
        return callers[-1]

    yield make
    for caller in callers:
        caller.close()


def running(process):
    return process.poll() is None


def gone(pid):
    """Whether a process ends within ten seconds (a zombie has ended)."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_a_place_is_imported_in_a_worker_that_stays(rules, called):
    letters, pid = called(rules("letters")), called(rules("pid"))
    assert (letters.name, letters.signature) == ("letters", Signature(False))
    assert [letters(("x", "four"), {}), letters(("x", ""), {})] == [4, 0]
    first = pid((), {"prompts": ["x"], "completions": ["y"]})
    assert first == pid((), {"prompts": ["x"], "completions": ["y"]}) == [pid.process.pid]
    assert first != [os.getpid()]
    assert "rules" not in sys.modules


def test_functions_run_in_the_main_thread_with_no_input(rules, called):
    assert called(rules("main_thread"))(("x", "y"), {}) == 1.0
    assert called(rules("reads"))(("x", "y"), {}) == 1.0


@linux
@pytest.mark.parametrize("where", ["main thread", "worker thread", "process"])
def test_a_hang_is_ended_wherever_it_is_called_from(rules, where, tmp_path):
    def attempt():
        caller = caller_of(rules("hang"), 1.0)
        assert caller((str(tmp_path), "fine"), {}) == 1.0
        hanging = caller.process
        with pytest.raises(RewardCallError, match="no answer in 1 seconds") as error:
            caller((str(tmp_path), "hang"), {})
        assert error.value.why == "hung"
        assert not running(hanging)
        assert caller((str(tmp_path), "fine"), {}) == 1.0  # in a new one
        assert caller.process.pid != hanging.pid
        caller.close()
        assert not running(caller.process)

    if where == "main thread":
        attempt()
    elif where == "worker thread":
        errors = []
        thread = threading.Thread(target=lambda: errors.append(_caught(attempt)))
        thread.start()
        thread.join()
        assert errors == [None]
    else:
        code = (
            "import threading; from tokenry.learn.rewards.calling import *\n"
            f"caller = caller_of({rules('hang')!r}, 1.0)\n"
            f"try: caller(({str(tmp_path)!r}, 'hang'), {{}})\n"
            "except RewardCallError as failure: print(failure.why)\n"
        )  # a script without `if __name__ == '__main__'`, in a process that is not this one
        script = tmp_path / "script.py"
        script.write_text(code)
        done = subprocess.run(
            [sys.executable, script], capture_output=True, text=True, check=True, env=ENVIRONMENT
        )
        assert done.stdout == "hung\n"
    assert gone((tmp_path / "pid").read_text())  # what the function had started is ended with it


ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def _caught(function):
    try:
        function()
    except BaseException as error:
        return error
    return None


@linux
def test_a_worker_ends_with_the_process_that_asks_even_when_it_hangs(rules, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from tokenry.learn.rewards.calling import *\n"
        f"caller = caller_of({rules('hang')!r}, 500.0)\n"
        "print(caller.process.pid, flush=True)\n"
        f"caller(({str(tmp_path)!r}, 'hang'), {{}})\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=ENVIRONMENT)
    pid = int(parent.stdout.readline())
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.02)  # it hangs soon after
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert gone(pid)
    assert gone((tmp_path / "pid").read_text())


def test_a_function_that_raises_or_takes_its_process_down(rules, called):
    weather = called(rules("weather"))
    assert weather.signature == Signature(
        True, ("prompts", "completions", "answer"), ("prompts", "completions", "answer", "tone"),
        every_column=True,
    )  # fmt: skip
    columns = {"prompts": ["x"], "completions": ["y"], "answer": [1]}
    for _ in range(2):
        with pytest.raises(RewardCallError, match="KeyError: 'sun'") as error:
            weather((), columns)
        assert error.value.why == "raised"
    die = called(rules("die"))
    for _ in range(2):
        with pytest.raises(RewardCallError, match="its process ended with code 7") as error:
            die(("x", "y"), {})
        assert error.value.why == "ended"


def test_places_that_hold_no_function_are_refused_before_any_call(rules, tmp_path):
    for place, what in (
        (rules("number"), "not a function"),
        (rules("letterz"), "did you mean letters"),
        (f"{tmp_path}/none.py:letters", "no such file"),
    ):
        for timeout in (30.0, None):
            with pytest.raises((InputError, LookupError), match=r"function|did you|no such"):
                caller_of(place, timeout)
        with pytest.raises(InputError, match=what):
            caller_of(place, 30.0)
    with pytest.raises(InputError, match="a reward must be a function"):
        caller_of(3, 30.0)


def test_what_cannot_be_sent_runs_here_and_that_is_said_once(called):
    seen = []
    with pytest.warns(UserWarning, match="nothing ends it if it hangs") as warned:
        caller = called(lambda prompt, completion: seen.append(completion) or 2.0)
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [caller(("x", text), {}) for text in "ab"] == [2.0, 2.0]
        assert seen == ["a", "b"]
        assert isinstance(called(lambda p, c: 1.0, None), Local)  # asked for: nothing to say
    with pytest.raises(RewardCallError, match="ZeroDivisionError"):
        called(lambda p, c: 1 / 0, None)(("x", "y"), {})


def test_what_can_be_pickled_is_sent(called):
    caller = called(max)
    assert isinstance(caller, Worker)
    assert caller(("a", "b"), {}) == "'b'"  # no number: its text, which no check takes for one
    assert pickle.loads(caller.message) == ("pickle", pickle.dumps(max))


@pytest.mark.parametrize(
    ("function", "batched"),
    [
        (lambda prompt, completion: 0, False),
        (lambda prompt, completion, **more: 0, False),
        (lambda p, c: 0, False),
        (lambda prompts, completions: 0, True),
        (lambda completions, **columns: 0, True),
        (lambda **columns: 0, True),
        (len, False),
        (print, False),
    ],
)
def test_the_signature_decides_how_a_function_is_called(function, batched):
    assert signature_of(function).batched is batched


def test_values_come_as_plain_numbers():
    import numpy as np
    import torch

    given = [np.float32(0.5), torch.tensor(2), None, True, (1, torch.tensor([3.0])), "x", 1j]
    assert plain_value(given) == [0.5, 2, None, True, [1, [3.0]], "'x'", "1j"]
    assert plain_value(np.array([1.0, 2.0])) == [1.0, 2.0]
