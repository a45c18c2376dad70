"""Who of a group is shown what, so that a teacher knows more. No JAX."""

SEEING = ('none', 'all', 'half')  # Whose own prompts show skills.
# Members that a group must have for its teachers to see other episodes of the task.
MEMBERS = {'sibling': 2, 'contrast': 3, 'right_hint': 2, 'wrong_hint': 2, 'mistake': 2}


def check(seeing: str, context: str | None) -> None:
  """Raises ValueError where a teacher sees no more than its student."""
  if seeing not in SEEING:
    raise ValueError(f'student_sees_skills={seeing!r}: must be one of {SEEING}')
  if context is None:
    return
  if context == 'other_view':
    if seeing != 'half':
      raise ValueError(
        'this teacher compares members of a group with and without skills: half of'
        f' them must see skills, not {seeing!r}'
      )
  elif context == 'skills' and seeing != 'none':
    raise ValueError(
      'its student sees the very skills that the teacher would: there is nothing to'
      ' teach; take a policy whose own prompts are plain'
    )
  elif seeing != 'none':
    raise ValueError(
      f"its student sees skills that a teacher of the kind '{context}' does not: it"
      ' would know other things, not more; take a policy whose own prompts are plain'
    )
