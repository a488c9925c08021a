"""What all tests run under, and the processes they start.

One thread: tiny tensors gain nothing from more and lose their last bits. And Ctrl-C is heard, which
a shell's background job (`pytest &`) ignores, with all that it starts.
"""

import os
import signal

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
