"""What clients send and get: bodies, answers."""
