"""Losses per token: pure functions of [B, T] arrays, no model. Device."""
