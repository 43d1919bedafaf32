from benchmarks.routing.prompts import EXAMPLE_WORDS, Texts


def test_texts_are_as_long_as_asked_and_the_same_for_a_seed() -> None:
    assert len(Texts(0).prompt(300).split()) == 300
    assert len(Texts(0).example(1).split()) == EXAMPLE_WORDS
    assert Texts(0).prompt(50) == Texts(0).prompt(50) != Texts(1).prompt(50)


def test_examples_of_a_topic_have_words_in_common() -> None:
    texts = Texts(0)
    first, same, other = ({*" ".join(texts.example(topic) for _ in range(40)).split()} for topic in (1, 1, 2))
    assert len(first & same) > len(first & other) + 20
