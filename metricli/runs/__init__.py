"""Orchestration over Accelerate: train, validate, predict, checkpoints."""
