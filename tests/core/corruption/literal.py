"""Equations 2 to 5 and table rows, written out token by token in plain Python: the second implementation."""

import math
from collections import Counter

from data_contracts import TokenKind as K

STAGE_ONE = (K.MASK, K.SYNTAX, K.HALLUCINATION, K.CLEAN)


def loss(log_p, kinds, t, recipe, scope="mistakes"):
    """Mean over rows of the literal loss of each. log_p[row][i] is log p(target) of token i."""
    total = 0.0
    for row_log_p, row_kinds, row_t in zip(log_p, kinds, t, strict=True):
        total += -row_loss(row_log_p, [K(kind) for kind in row_kinds], row_t, recipe, scope)
    return total / len(kinds)


def row_loss(log_p, kinds, t, recipe, scope):
    response = [i for i, kind in enumerate(kinds) if kind not in (K.PROMPT, K.PAD)]
    if recipe == "mask":  # eq. 2, as a mean over the response
        return sum(log_p[i] for i in response if kinds[i] == K.MASK) / (t * len(response))
    if recipe == "revision":  # eq. 3 and 4
        return math.fsum(kind_mean(log_p, kinds, kind) / t for kind in STAGE_ONE)
    if scope == "mistakes":  # eq. 5
        return kind_mean(log_p, kinds, K.MISTAKE)
    return sum(log_p[i] for i in response) / len(response)


def kind_mean(log_p, kinds, kind):
    """(1/N_kind) sum of log p over the tokens of a kind; 0 if there is none."""
    count = Counter(kinds)[kind]
    return sum(log_p[i] for i, found in enumerate(kinds) if found == kind) / count if count else 0.0
