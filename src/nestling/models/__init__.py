"""Models: references and families, files on this machine and on the hub, and the loaded model."""
