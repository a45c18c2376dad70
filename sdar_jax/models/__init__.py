"""Qwen and Llama decoders behind one forward function. Device."""
