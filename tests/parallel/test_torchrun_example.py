"""One schedule under `torchrun`, in two processes of one machine."""

import os
import signal
import subprocess
import sys

import pytest
import torch.distributed as dist

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo"
)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs Unix sessions")
def test_torchrun_starts_the_example():
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    example = ["--nproc-per-node", "2", "-m", "gradbook.parallel.torchrun_example"]
    run = subprocess.Popen(
        [*start, *example, "recursive_doubling", "1001"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    with run:
        try:
            output, errors = run.communicate(timeout=120)
        except BaseException:
            os.killpg(run.pid, signal.SIGKILL)  # and the processes that it started
            raise
    assert run.returncode == 0, errors
    assert output.splitlines() == [
        "recursive_doubling on 2 processes over gloo: the sum of 1001 numbers agrees, "
        "rank 0 sent 4004 bytes"
    ]
