"""Processes that share work: PyTorch's launcher torchrun starts them, and they end with the process that started it.

    processes    ending with the parent, leaving at once, cores of one's own
    rendezvous   where the processes of a launch meet
    agent        torchrun as a process of this library
    torchrun     its command, its environment, its end

Only ``rendezvous`` imports torch.
"""
