"""An episode by hand, and what the policy thinks of it. Device."""
