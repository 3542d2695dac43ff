"""C for desktop and server CPUs: vector kernels chosen at run time, batches and threads. The integers are those of the
portable C."""
