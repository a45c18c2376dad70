"""Sampling responses from the policy. Device."""
