"""C for big CPUs: vector kernels chosen when it runs, whole batches, threads; the same integers as the portable C."""
