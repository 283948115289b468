"""Decoding is one loop: forward, scoring, schedule, policy, apply, trace.

Reading order: settings (what a user chooses; naming: how it is written in a line), state (the canvas, the view of one
step, `apply`), reading and guidance (how the model looks at the canvas), scoring (from scores to tokens), quotas and
schedule (what is revealed), policies (what becomes of visible tokens), stopping (stop words), noise (random numbers),
trace (what happened), loop (all of it together), strategies (from the settings to all of it).
Nothing is imported here, so that reading the settings does not load torch.
"""
