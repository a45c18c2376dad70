"""Qwen and Llama decoders behind one forward function; Hugging Face files. Device."""
