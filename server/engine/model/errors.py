"""Why a model is refused at start."""


class UnservableModel(Exception):
    """The message completes the sentence "this model cannot be served: …"."""
