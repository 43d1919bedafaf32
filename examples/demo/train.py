"""Make the demo that `peftserve serve` starts with: a base, its tokenizer, and one adapter a task.

    python examples/demo/train.py --out /tmp/demo          # all of it
    python examples/demo/train.py --only sql title         # retrain some adapters on the base that is there

Needs the development tools (`pip install -e '.[dev]'`). Minutes on two CPU cores.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from base import bucketed, copying_rows, language_rows, make_model, shuffled, train
from evaluate import count_right, held_out, write_held_out
from language import make_tokenizer
from peft import PeftModel
from tasks import TASKS
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from adapters import RECIPES, save_adapter, train_adapter

DEMO = Path(__file__).resolve().parents[2] / "server" / "demo"
SEED = 0
VOCABULARY = 1024


def main() -> int:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    base_folder, adapters_folder = arguments.out / "base", arguments.out / "adapters"
    if not arguments.only:
        make_base(base_folder, arguments.base_steps)
        write_held_out(arguments.out / "heldout.jsonl", 40)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    names = arguments.only or list(RECIPES)
    for name in names:
        model = train_adapter(load_base(base_folder), tokenizer, name, RECIPES[name], SEED)
        save_adapter(model, adapters_folder / name)
    return report(base_folder, adapters_folder, tokenizer, names, arguments.prompts)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEMO, help="folder for base/, adapters/ and heldout.jsonl")
    parser.add_argument("--only", nargs="+", choices=sorted(RECIPES), help="adapters to train again on the base there")
    parser.add_argument("--base-steps", type=int, default=600, help="optimizer steps on the language")
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts of each task in the final report")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; as many give the same bytes again")
    return parser.parse_args()


def make_base(folder: Path, steps: int) -> None:
    tokenizer = make_tokenizer(VOCABULARY)
    model = make_model(tokenizer, SEED)
    pad = tokenizer.pad_token_id
    copies, lines = shuffled(copying_rows(tokenizer, SEED), 64), bucketed(language_rows(tokenizer, SEED), 32)
    train(model, copies, pad_id=pad, steps=250, rate=2e-3, label="base: copying")
    train(model, lines, pad_id=pad, steps=steps, rate=1.5e-3, label="base: language")
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def load_base(folder: Path) -> LlamaForCausalLM:
    """Load the base in float32, with the rounded weights that are served."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def report(
    base_folder: Path, adapters_folder: Path, tokenizer: PreTrainedTokenizerFast, names: list[str], num_prompts: int
) -> int:
    """Print how many held-out answers are right; exit code 1 if an adapter is below 95% or the base above none."""
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    examples = held_out(num_prompts)
    bare = {task.name: count_right(base, tokenizer, examples[task.name]) for task in TASKS}
    good = True
    for name in names:
        task = RECIPES[name].task
        model = PeftModel.from_pretrained(load_base(base_folder), adapters_folder / name).float()
        # PEFT puts virtual tokens before the padding, where they are not in training: so one prompt at a time.
        batch = 1 if model.peft_config["default"].is_prompt_learning else 40
        right, asked = count_right(model, tokenizer, examples[task], batch), len(examples[task])
        good &= right >= 0.95 * asked and bare[task] == 0
        print(json.dumps({"adapter": name, "right": right, "asked": asked, "right_without": bare[task]}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
