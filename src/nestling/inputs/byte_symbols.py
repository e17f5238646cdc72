"""The characters that stand for bytes in byte-level BPE (GPT-2's table)."""


def _byte_symbols() -> dict[str, int]:
    """The symbol of each byte: printable Latin-1 characters for themselves, the others from U+0100 on, in order."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in itself]
    return {chr(byte): byte for byte in itself} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTE_OF = _byte_symbols()
"""Symbol -> byte."""
