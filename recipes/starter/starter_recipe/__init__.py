"""The training recipe of the starter checkpoint: fetch, data, teacher, train, export, evaluate.

Each step is one command (``python -m starter_recipe.STEP``) that reads and writes one work folder.
"""
