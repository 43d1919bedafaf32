"""lm-eval, as its `local-completions` with the server's own tokenizer."""

import checks
from checks import ADAPTER, BASE, PROMPT, expect
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI


def model(name: str = BASE) -> LocalCompletionsAPI:
    return LocalCompletionsAPI(
        model=name,
        base_url=f"{checks.BASE_URL}/completions",
        tokenizer_backend="remote",
        max_length=256,
        max_retries=1,
    )


def instance(kind: str, *arguments: object) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def completions() -> None:
    asked = instance("generate_until", PROMPT, {"until": ["."], "max_gen_toks": 8, "temperature": 0})
    expect(isinstance(model().generate_until([asked], disable_tqdm=True)[0], str), "no text")


def logprobs() -> None:
    [(score, _)] = model().loglikelihood([instance("loglikelihood", PROMPT, " jumps")], disable_tqdm=True)
    expect(score < 0, "not a logprob")
    [rolled] = model().loglikelihood_rolling([instance("loglikelihood_rolling", PROMPT)], disable_tqdm=True)
    expect(rolled < 0, "not a logprob")


def adapters() -> None:
    asked = [instance("loglikelihood", PROMPT, " jumps")]
    plain, adapted = (model(name).loglikelihood(asked, disable_tqdm=True)[0][0] for name in (BASE, ADAPTER))
    expect(plain != adapted, "the adapter changes nothing")


if __name__ == "__main__":
    checks.run(completions, adapters, logprobs)
