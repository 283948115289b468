"""Decoding is one loop: forward, schedule, policy, apply, trace.

Reading order: settings (what a user chooses), state (the canvas, the view of one step, `apply`), reading (how the model
looks at the canvas), schedule (what is revealed), policies (what becomes of visible tokens), trace (what happened),
loop (all of it together).
Nothing is imported here, so that reading the settings does not load torch.
"""
