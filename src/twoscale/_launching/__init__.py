"""Processes that share work: PyTorch's launcher torchrun starts them, and they end with the process that started it.

    processes    ending with the parent, leaving at once, cores of one's own
    rendezvous   where the processes of a launch meet
    agent        torchrun as a process of this library
    interfaces   the network interface that leads to another machine
    hosts        several machines that share one command
    torchrun     its command, its environment, its end

Importing any of them but ``rendezvous`` does not import torch.
"""
