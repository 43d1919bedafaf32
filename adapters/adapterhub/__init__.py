"""Adapters as AdapterHub's library (`adapters`) saves them: the bottleneck forms. Every other method is PEFT's."""
