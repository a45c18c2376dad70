"""From episodes to fixed-shape arrays. Host."""
