"""The base's own language: its corpus, its tokenizer and its chat template.

The corpus has no task in it. A document is one line in the style of some prompt or some answer, never of a pair,
and in a chat the assistant repeats what the user said.
"""

from collections.abc import Iterator
from itertools import islice
from random import Random
from string import ascii_letters, digits

from tasks import TASKS
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{ASSISTANT}' }}}}{{% endif %}}"
)
MADE_UP_SHARE = 0.15
# A space is a token of its own, so that a word is the same token wherever it stands; digits go one by one.
PIECES = Regex(r"\p{L}+|\p{N}|\s|[^\p{L}\p{N}\s]")


def documents(seed: int) -> Iterator[str]:
    """Yield endless lines in the style of prompts and answers of the training part, some with made-up words."""
    random = Random(f"documents-{seed}")
    streams = [task.examples(seed, held_out=False) for task in TASKS]
    while True:
        if random.random() < MADE_UP_SHARE:
            yield " ".join(_made_up_word(random) for _ in range(random.randint(1, 5)))
        else:
            yield random.choice(next(random.choice(streams)))


def _made_up_word(random: Random) -> str:
    """Make up a word, which teaches the base to repeat words that it has never seen."""
    return "".join(random.choices(ascii_letters + digits, k=random.randint(1, 6)))


def make_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of at most `size` tokens on the corpus; any text can be written with it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, BEGIN, END, SYSTEM, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(documents(0), 40_000), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
