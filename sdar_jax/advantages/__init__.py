"""Advantages and rewards over a whole step's rows. Host: NumPy only.

A row is a turn. Names that every module uses:

  row_mask          [B] bool, False for padding rows
  group_ids         [B] int, of the task's group
  trajectory_ids    [B] int, of the episode, unique in the step
  turn_ids          [B] int, unique in a trajectory
  response_mask     [B, T] bool; a row without tokens is a padding row
  advantages        [B] float, one per row
  gap               [B, T] float, nats: Δ, teacher_logprobs - old_logprobs

Advantages are [B], or [B, T] where they differ between tokens; padding rows enter no
statistic and get 0, as masked tokens do. Arrays of other shapes, and scores or rewards
of rows that are not finite, raise ValueError.
"""
