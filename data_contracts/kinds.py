"""What a token of a training example is."""

from enum import IntEnum


class TokenKind(IntEnum):
    """Kind of one token of a training example; stored as int8.

    PROMPT and PAD weigh nothing. MASK if and only if the input is the mask token. In the denoising recipes CLEAN means
    that input equals target; SYNTAX (random replacement), HALLUCINATION (plausible wrong fact) and MISTAKE (an error
    of the model, found by the expert) mean that it does not.
    """

    PROMPT = 0
    PAD = 1
    MASK = 2
    SYNTAX = 3
    HALLUCINATION = 4
    CLEAN = 5
    MISTAKE = 6
