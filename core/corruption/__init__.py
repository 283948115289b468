"""Corruption: samples, pairs and revised drafts -> TrainingExamples. A row is what the model sees; training only reads.

responses   text -> fixed-length token ids, once; rejects with a reason
rows        arrays -> TrainingExamples frames; the account of every row
noise       noise levels, masks and random replacements, drawn per (sample, draw)
mask        the mask-predict baseline (eq. 2)
revision    ReDiff Stage I: masks, hallucinations and syntax noise (eq. 3 and 4)
refine      ReDiff Stage II: drafts and what the expert made of them (eq. 5)
weights     the loss weight of every token, computed when a batch is collated

Equations, defaults and options are those of the papers ReDiff (arXiv 2510.19871) and LLaDA (2502.09992).
"""
