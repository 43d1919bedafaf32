import os
import signal
import subprocess
import sys
import time

from peftserve.server.api.engine.vitals import vitals_of


def test_processor_time_and_stops_of_a_process_are_seen():
    spent = vitals_of(os.getpid()).processor_seconds
    while vitals_of(os.getpid()).processor_seconds == spent:
        pass
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert not vitals_of(process.pid).stopped
        process.send_signal(signal.SIGSTOP)
        while not vitals_of(process.pid).stopped:
            time.sleep(0.01)
        process.kill()
    assert vitals_of(process.pid) is None
