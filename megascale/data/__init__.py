"""Training data: Megatron's indexed format, byte-level tokens, the order of samples."""
