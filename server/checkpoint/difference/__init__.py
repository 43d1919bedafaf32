"""The difference of two checkpoints of one architecture, written as a PEFT adapter on the first."""
