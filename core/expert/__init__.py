"""The expert that revises drafts: prompts, client, ledger of replies, reply parser, and the reference expert."""
