"""Losses per token: pure functions of arrays, no model. Device.

Names that every module uses, [B, T] each:

  logprobs          float, nats: log π of the sampled tokens; carries the gradient
  old_logprobs      float, nats: before this step's updates; like all others constant
  ref_logprobs      float, nats: of the initial policy
  teacher_logprobs  float, nats: under the privileged prompt
  advantages        float
  mask              bool, True on the tokens that count

Losses are [B, T], to be minimised, exactly 0 where masked.
"""
