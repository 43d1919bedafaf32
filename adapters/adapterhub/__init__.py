"""Adapters as AdapterHub's library (`adapters`) saves them (Poth et al. 2023, arXiv:2311.11077).

One file of configuration holds one method, or a union of several, each a part here: it is read by a function of
`config.PARSERS` and compiled by one of `compile.COMPILERS`. Every method of PEFT is in `adapters/peft`.
"""
