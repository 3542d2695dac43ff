"""Where the time of data-parallel training goes: measurements whose truth can be checked.

    launch        fresh processes for one measurement; failures are recorded outcomes
    workload      model, optimizer step and batches of a measurement, without the training loop
    clocks        steps timed over ranks; an epoch's time, throughput and memory
    arms          compute, wrapper, exposed communication, overlap, skew, data wait
    ledger        what DDP puts on the wire, predicted and observed to the byte
    bandwidth     algbw and busbw of collectives
    replicas      would gradients alone do; the sampler's orders
    peak          the device's measured matrix rate; a step's floating-point operations
    capacity      the largest batch that fits
    forecast      steps on more ranks or at other rates, and what may not be forecast
    records       what all of these return
    study         all of it in cells: config, cells, jobs (in the ranks), analysis, verdict, results; sentences, tables,
                  figures and page show them, progress tells how it goes
    statistics    medians, and intervals that state their coverage

Each measurement is a function that runs inside ranks that exist already, and, named "module:run", the target of a
launch. Importing this package, ``launch``, ``capacity``, ``forecast`` and ``records`` does not import torch.
"""
