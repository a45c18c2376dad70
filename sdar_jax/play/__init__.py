"""An episode by hand: what a person types, and what the policy thinks of it. Device."""
