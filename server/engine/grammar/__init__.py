"""What a sequence's output must be: grammars compiled off the step loop, and their masks over the vocabulary.

llguidance (https://github.com/guidance-ai/llguidance) does the work. Knows token ids and no tensors.
"""
