"""Pure loss functions on [B, T] arrays; they know no model."""
