"""Processes that share work, started by PyTorch's own launcher, torchrun, and ended with what started them.

    processes   ending with the parent; cores of one's own
    agent       torchrun as a process of ours
    torchrun    its command, its environment, its end

Importing this package and its modules does not import torch.
"""
