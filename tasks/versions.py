"""The version of each stage: bump it by hand when the stage's output changes for equal config and inputs.

Import-light: the command line compares a finished run with it before it starts anything.
"""

VERSIONS = {
    "adopt": 1,
    "assemble": 1,
    "corrupt": 1,
    "create_model": 2,
    "draft": 1,
    "evaluate": 1,
    "finetune": 1,
    "ingest": 2,
    "keep_tokenizer": 1,
    "mask": 1,
    "pair": 2,
    "revise": 1,
    "switch_attention": 1,
    "synth": 1,
    "take": 1,
    "warm_up": 1,
}
