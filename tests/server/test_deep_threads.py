"""A text as deep as any that a client may send, which a usual stack would not hold."""

import threading

from llguidance import LLMatcher

from peftserve.server.deep_threads import STACK, DeepThreads


def test_a_deep_grammar_is_checked_and_other_threads_are_as_usual() -> None:
    before = threading.stack_size()
    rules = "\n".join(f"r{i}: r{i + 1}" for i in range(6000))
    grammar = LLMatcher.grammar_from_lark(f'start: r0\n{rules}\nr6000: "z"')
    with DeepThreads(2) as threads:
        is_error, messages = threads.submit(LLMatcher.validate_grammar_with_warnings, grammar).result(timeout=60)
    assert not is_error, messages
    assert threading.stack_size() == before < STACK
