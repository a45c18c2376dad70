"""Losses per token: pure functions on [B, T] arrays; no model. Device."""
