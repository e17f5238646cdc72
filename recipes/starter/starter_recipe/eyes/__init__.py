"""The starter's eyes: a small vision tower, trained so that an image's vector lies near its text's.

Each step is one command (``python -m starter_recipe.eyes.STEP``) that reads and writes one work folder.
"""
