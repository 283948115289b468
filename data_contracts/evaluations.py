"""How good each answer is: one row a sample and decoder setting."""

from typing import ClassVar

import dataframely as dy

from data_contracts.contract import Contract


class Evaluations(Contract):
    """Metrics are null where the world has no exact facts (`score` .. `binding_error`)."""

    table: ClassVar[str] = "evaluations"

    sample_id = dy.String(primary_key=True)
    setting = dy.String(primary_key=True)
    arm = dy.String()
    policy = dy.String()
    tokens_per_step = dy.Int32(min=1)
    extra_steps = dy.Int32(min=0)
    nfe = dy.Int32(min=0)
    text = dy.String()
    score = dy.Float64(nullable=True, description="100 x F1(strict_precision, fact_recall)")
    strict_precision = dy.Float64(nullable=True)
    fact_precision = dy.Float64(nullable=True)
    fact_recall = dy.Float64(nullable=True)
    fact_f1 = dy.Float64(nullable=True)
    stated_objects = dy.Int32(nullable=True, description="stated objects that are in the scene")
    placed_objects = dy.Int32(nullable=True, description="those of them whose stated place is right")
    bound_objects = dy.Int32(nullable=True, description="stated objects whose colour and shape belong together")
    all_objects = dy.Int32(nullable=True, description="stated objects")
    validity = dy.Float64(nullable=True, description="tokens inside parsed clauses / all tokens")
    repeat_rate = dy.Float64(nullable=True)
    overlap_f1 = dy.Float64(nullable=True, description="bag-of-words F1 with the reference, for any text")
