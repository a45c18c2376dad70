"""Qwen decoders behind one pure forward function."""
