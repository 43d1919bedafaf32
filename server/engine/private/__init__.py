"""All that the engine uses of other libraries' private parts: one module a library, and one for torch's compiler.

Each module lists the names in `NAMES`, with what they are for and what would replace them, and in `OPTIONAL` those that
not every supported version has. A name is a Python expression, which must evaluate, and not to False. An upgrade that
takes one away fails in the tests of this folder, which print what it was for.
"""
