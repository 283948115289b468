"""Who revises the drafts: client, ledger, prompts, and a reference expert that answers by rule."""
