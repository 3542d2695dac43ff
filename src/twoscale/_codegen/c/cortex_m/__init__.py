"""C for Cortex-M cores with the DSP extension or Helium."""
