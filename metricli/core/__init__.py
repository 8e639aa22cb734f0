"""Pure functions on tensors; no state, no I/O."""
