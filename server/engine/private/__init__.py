"""All that the engine uses of other libraries' private parts: one module a library, and one for torch's compiler.

Each module has a table `USES`, from a Python expression to why it is used and what replaces it when it goes, and
`OPTIONAL` for names that not every supported version has. An upgrade that takes a name away fails in the tests of
this folder, which print these reasons. Modules elsewhere in the engine name nothing private of another library.
"""
