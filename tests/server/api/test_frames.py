import msgspec

from peftserve.server.api.frames import TextFrames, frame


class _Said(msgspec.Struct):
    index: int
    text: str
    model: str = 'the "text" itself'


def test_a_frame_is_one_event():
    assert frame(_Said(0, "a\nb")) == b'data: {"index":0,"text":"a\\nb","model":"the \\"text\\" itself"}\n\n'


def test_frames_from_a_template_are_those_of_the_struct_whatever_the_text():
    made = []

    def example(index, text):
        made.append(index)
        return _Said(index, text)

    frames = TextFrames(example)
    for text in ("", "a", '"\\/', "\n\r\t\0\x7f", "é😀\u2028", "</script>", '","text":"'):
        for index in range(3):
            assert frames(index, text) == frame(_Said(index, text))
    assert made == [0, 1, 2]
