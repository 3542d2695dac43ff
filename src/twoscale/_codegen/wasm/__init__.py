"""WebAssembly: the C of a network for browsers, and the ES module, types and page that use it."""
