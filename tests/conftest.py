"""One thread for all tests: tiny tensors gain nothing from more and lose their last bits."""

import os

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
torch.set_num_threads(1)
