"""Corruption: samples, pairs and revised drafts -> TrainingExamples. A row is what the model sees; training only reads.

responses   text -> fixed-length token ids, once; rejects with a reason
rows        arrays -> TrainingExamples frames; the account of every row
captions    samples -> clean, encoded captions
caption_pairs   real captions -> hallucination pairs, by rule: caption_sites says where, lexicon knows the words
invented_pairs  the same by an expert; pair_check judges its proposals
pairs       hallucination pairs -> ids that can be injected into them
noise       noise levels, masks and random replacements, drawn per (sample, draw)
mask        the mask-predict baseline (eq. 2)
revision    ReDiff Stage I: masks, hallucinations and syntax noise (eq. 3 and 4)
decodings   partial states of a draft's decoding
revised     drafts joined with their revisions
refine      ReDiff Stage II: drafts and what the expert made of them (eq. 5)
replay      a share of Stage I rows among those of Stage II
weights     the loss weight of every token, computed when a batch is collated
settings    of all of these, without heavy imports

Equations, defaults and options are those of the papers ReDiff (arXiv 2510.19871) and LLaDA (2502.09992).
"""
