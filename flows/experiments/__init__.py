"""Experiments named by the papers: which arms they compare, and how each arm's model comes about.

Read catalogue.py (what is compared), then lab.py (recipes of the models), seed.py (one seed, measured), tables.py.
"""
