"""From an F16 file to smaller ones: file types, importance matrices, mixes."""
