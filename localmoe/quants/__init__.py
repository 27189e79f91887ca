"""What a block of weights means: the table of formats, decoding and encoding."""
