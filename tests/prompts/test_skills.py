"""The skill bank, its retrieval by metadata, its budget, and where prompts show it."""

import copy
import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skill_cases import ALFWORLD, BANKS, HEAT_MUG, TINY, ByteChat, context, spell, task

from sdar_jax.envs.alfworld import generated, instruction
from sdar_jax.envs.alfworld.rooms import HOUSEHOLD
from sdar_jax.prompts import bank_file, retrieval, skills
from sdar_jax.prompts.skills import BY_METADATA, SkillError


@pytest.mark.parametrize('path', BANKS.values(), ids=BANKS)
def test_bank_covers_the_game(path):
  bank = bank_file.load(path)
  assert set(bank.task_types) == set(instruction.TASK_TYPES)
  assert set(bank.objects) == {name.lower() for _, name in HOUSEHOLD.places}
  assert bank.world == 'alfworld' and bank.version
  assert bank.digest == hashlib.sha256(path.read_bytes()).hexdigest()
  if path == ALFWORLD:
    assert len(bank.general) >= 8
    assert min(map(len, bank.task_types.values())) >= 4


def _mentioned(text):
  """Words in order of first mention."""
  words = text.lower().replace(',', ' ').replace('.', ' ').replace(';', ' ').split()
  return list(dict.fromkeys(words))


@pytest.mark.parametrize('path', BANKS.values(), ids=BANKS)
def test_hints_agree_with_where_games_put_things(path):
  """Every likely place is named; no place that could not contain the object is."""
  bank = bank_file.load(path)
  possible = {
    name.lower(): {item.lower() for item in items}
    for name, items in HOUSEHOLD.contains.items()
  }
  for (_, name), weights in HOUSEHOLD.places.items():
    words = _mentioned(bank.objects[name.lower()].principle)
    likely = [place.lower() for place in weights]
    assert set(likely) <= set(words), name
    named = [word for word in words if word in possible]
    assert all(name.lower() in possible[word] for word in named), name


def test_first_hint_is_the_likeliest_place():
  """The prose hint of each room kind starts with the place of the largest weight."""
  bank = bank_file.load(ALFWORLD)
  words = {'living': 'living room'}
  for (kind, name), weights in HOUSEHOLD.places.items():
    text = bank.objects[name.lower()].principle.lower()
    _, _, rest = text.partition(f'in a {words[kind] if kind in words else kind}: ')
    first = rest.replace('.', ',').replace(';', ',').split(',')[0]
    assert first == max(weights, key=weights.get).lower(), (kind, name)


def test_games_carry_the_metadata_that_retrieval_needs():
  bank = bank_file.load(ALFWORLD)
  tasks = generated.GeneratedGames('valid_seen', 'small')
  for index in range(40):
    metadata = tasks[index].metadata
    found = bank.retrieve(metadata)
    assert f'object_{metadata["object"]}' in [skill.id for skill in found]


def test_retrieval_is_by_metadata_most_specific_first():
  bank = bank_file.load(ALFWORLD)
  ids = [skill.id for skill in bank.retrieve(HEAT_MUG)]
  heat = [f'heat{i}' for i in range(1, 6)]
  general = [skill.id for skill in bank.general]
  assert ids == [*heat, 'object_mug', *general]
  assert [s.id for s in bank.retrieve(HEAT_MUG, 'task')] == heat + general
  everything = [skill.id for skill in bank.retrieve(HEAT_MUG, 'all')]
  assert everything[: len(ids)] == ids
  assert sorted(everything) == sorted(skill.id for skill in bank.everything())
  unknown = {'task_type': instruction.HEAT, 'object': 'unicorn'}
  assert [s.id for s in bank.retrieve(unknown)] == heat + general


def test_user_text_does_not_change_what_is_seen():
  teacher = context()
  _, first = teacher.prompt('heat a mug', task())
  _, second = teacher.prompt('clean cool put two look at light', task())
  assert first == second and 'heat1' in first.skill_ids


@pytest.mark.parametrize(
  'metadata', ({'object': 'mug'}, {'task_type': instruction.HEAT})
)
def test_metadata_that_lacks_a_key(metadata):
  with pytest.raises(SkillError, match='task metadata lacks'):
    context().prompt('x', task(metadata))


def test_unknown_task_type_is_an_error_not_general_advice():
  with pytest.raises(SkillError, match="no skills for task type 'fly'"):
    context().prompt('x', task({'task_type': 'fly', 'object': 'mug'}))


def test_placements():
  block = bank_file.load(ALFWORLD)
  block = block.block(block.retrieve(HEAT_MUG))
  user = 'Your task.'
  header = skills.REFERENCE_HEADER
  want = {
    'user': f'\x01S\x02\x01{block}\n\n{user}\x02\x01',
    'system': f'\x01S\n\n{block}\x02\x01{user}\x02\x01',
    'reference': f'{header}\n{block}\n\n\x01S\x02\x01{user}\x02\x01',
  }
  assert set(want) == set(skills.PLACEMENTS)
  for placement, text in want.items():
    ids, view = context(placement, system='S').prompt(user, task())
    assert ids.dtype == np.int32 and spell(ids) == text
    assert view.tokens == len(ids) - len(ByteChat('S').render(user))
  ids, view = context('system').prompt(user, task())
  assert spell(ids) == f'\x01{block}\x02\x01{user}\x02\x01'
  assert view.tokens == len(ids) - len(ByteChat().render(user))


@settings(max_examples=60, deadline=None)
@given(
  budget=st.integers(1, 4000),
  placement=st.sampled_from(skills.PLACEMENTS),
  kind=st.sampled_from(BY_METADATA),
  path=st.sampled_from(tuple(BANKS.values())),
)
def test_skills_are_whole_and_within_budget(budget, placement, kind, path):
  bank = bank_file.load(path)
  retrieved = bank.retrieve(HEAT_MUG, kind)
  teacher = context(placement, budget=budget, bank=path, kind=kind)
  plain = ByteChat().render('Your task.')
  try:
    ids, view = teacher.prompt('Your task.', task())
  except SkillError as error:
    want = f'config.skills.token_budget={budget}: skill {retrieved[0].id}'
    assert want in str(error)
    assert len(bank.block(retrieved[:1])) + 2 > budget or placement != 'user'
    return
  assert view.tokens == len(ids) - len(plain) <= budget
  assert view.skill_ids + view.left_out == tuple(skill.id for skill in retrieved)
  shown = spell(ids)
  for position, skill in enumerate(retrieved):
    assert (skill.text in shown) == (position < len(view.skill_ids))
  if view.left_out:  # The next one would not have fitted.
    more = len(bank.bullet + retrieved[len(view.skill_ids)].text) + 1
    assert view.tokens + more > budget


class _JoiningChat(ByteChat):
  """White space at a text's start joins what stands before it, or splits it."""

  def __init__(self, extra):
    super().__init__()
    self.extra = extra

  def render(self, user_text, system=None):
    ids = super().render(user_text, system)
    if user_text[:1].isspace():  # Only where it is the message's start.
      ids = np.concatenate([ids, ids[-1:]] if self.extra < 0 else [ids[:-1]])
    return ids


@pytest.mark.parametrize('extra', (-1, 1))
@pytest.mark.parametrize('text', ('x', ' x', '\nx'))
def test_no_prompt_grows_by_more_than_the_budget(extra, text):
  """Whatever white space at the start of the text does to the tokens."""
  chat_ = _JoiningChat(extra)
  plain = len(chat_.render(text))
  bank = bank_file.load(ALFWORLD)
  for budget in range(600, 700):
    retriever = retrieval.Retriever(bank, 'task+object')
    teacher = skills.TeacherContext(retriever, chat_, token_budget=budget)
    ids, view = teacher.prompt(text, task())
    assert len(ids) <= plain + budget and view.skill_ids
    for block in ('b' * (budget - 3), 'b' * (budget - 2), 'b' * (budget - 1)):
      placed = teacher.with_block(text, block)
      assert placed is None or len(placed[0]) <= plain + budget


@pytest.mark.parametrize('placement', skills.PLACEMENTS)
def test_the_budget_is_exact(placement):
  _, view = context(placement, budget=700).prompt('x', task())
  assert 1 < len(view.skill_ids)
  _, same = context(placement, budget=view.tokens).prompt('x', task())
  assert same == view
  _, less = context(placement, budget=view.tokens - 1).prompt('x', task())
  assert less.skill_ids == view.skill_ids[:-1]


def test_a_teacher_without_skills_is_an_error():
  with pytest.raises(SkillError) as error:
    context(budget=10).prompt('x', task())
  message = str(error.value)
  assert 'config.skills.token_budget=10: skill heat1' in message
  assert '\n' not in message


@pytest.mark.parametrize('kind', ('keywords', 'similar', 'ucb', 'random'))
def test_a_skill_that_may_come_first_must_fit(kind):
  """Or else the step in which it does would be the run's last."""
  bank = bank_file.load(ALFWORLD)
  longest = max(bank.everything(), key=lambda skill: len(skill.text))
  need = len(bank.block([longest])) + 2
  with pytest.raises(SkillError, match=f'budget={need - 1}: skill {longest.id} '):
    context(budget=need - 1, kind=kind)
  context(budget=need, kind=kind).prompt('x', task(goal='heat a mug'))


@pytest.mark.parametrize('kind', ('keywords', 'similar'))
def test_nothing_found_is_the_plain_prompt(kind):
  teacher = context(kind=kind, bank=TINY)  # It has no general skills.
  ids, view = teacher.prompt('Your task.', task({}, 'xyz'))
  np.testing.assert_array_equal(ids, ByteChat().render('Your task.'))
  np.testing.assert_array_equal(ids, teacher.plain('Your task.'))
  assert view == skills.NOTHING


@pytest.mark.parametrize('placement', skills.PLACEMENTS)
def test_any_block_is_placed_as_skills_are(placement):
  teacher = context(placement, system='S')
  want, view = teacher.prompt('Your task.', task())
  bank = bank_file.load(ALFWORLD)
  block = bank.block(bank.retrieve(HEAT_MUG))
  ids, tokens = teacher.with_block('Your task.', block)
  np.testing.assert_array_equal(ids, want)
  assert tokens == view.tokens
  exact = context(placement, system='S', budget=tokens)
  assert exact.with_block('Your task.', block) is not None
  tight = context(placement, system='S', budget=tokens - 1)
  assert tight.with_block('Your task.', block) is None


def test_what_is_chosen_is_not_computed_again():
  class CountingChat(ByteChat):
    calls = 0

    def render(self, *args, **kwargs):
      self.calls += 1
      return super().render(*args, **kwargs)

  chat = CountingChat()
  retriever = retrieval.Retriever(bank_file.load(ALFWORLD), 'task+object')
  teacher = skills.TeacherContext(retriever, chat, token_budget=1000)
  teacher.prompt('a', task())
  teacher.with_block('a', 'block')
  before = chat.calls
  teacher.prompt('b', task())
  teacher.with_block('b', 'block')
  assert chat.calls == before + 2


def test_unknown_placement():
  with pytest.raises(SkillError, match=r"config\.skills\.placement='margin': must be"):
    context('margin')


def test_unknown_retrieval_by_metadata():
  with pytest.raises(SkillError, match="retrieval 'ucb': must be one of"):
    bank_file.load(TINY).retrieve(HEAT_MUG, 'ucb')


def _damages():
  def unknown_key(bank):
    bank['general'][1]['wehn'] = 'x'
    return "general[1] has unknown keys ['wehn']"

  def lacking_key(bank):
    del bank['task_types'][instruction.HEAT][0]['title']
    return f"task_types.{instruction.HEAT}[0] lacks ['title']"

  def wrong_type(bank):
    bank['objects']['mug']['principle'] = 3
    return 'objects.mug.principle must be a string'

  def empty(bank):
    bank['general'][0]['principle'] = ''
    return 'general[0].principle must not be empty'

  def two_lines(bank):
    bank['general'][0]['principle'] = 'a\nb'
    return 'general[0].principle is not a line'

  def same_id(bank):
    bank['general'][1]['id'] = 'heat1'
    return 'heat1 is the id of 2 skills'

  def empty_type(bank):
    bank['task_types'][instruction.LOOK] = []
    return f'task_types.{instruction.LOOK} must not be empty'

  def schema(bank):
    bank['schema'] = 2
    return 'schema is 2; this code reads 1'

  def not_a_list(bank):
    bank['general'] = {}
    return 'general must be a list'

  def no_version(bank):
    del bank['version']
    return "the bank lacks ['version']"

  return (
    unknown_key,
    lacking_key,
    wrong_type,
    empty,
    two_lines,
    same_id,
    empty_type,
    schema,
    not_a_list,
    no_version,
  )


@pytest.mark.parametrize('damage', _damages(), ids=lambda case: case.__name__)
def test_damaged_bank_is_one_line(damage, tmp_path):
  bank = copy.deepcopy(json.loads(ALFWORLD.read_text()))
  complaint = damage(bank)
  file = tmp_path / 'bank.json'
  file.write_text(json.dumps(bank))
  with pytest.raises(SkillError) as error:
    bank_file.load(file)
  assert complaint in str(error.value) and str(file) in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('text', ('', '<html></html>', '[]', '"x"', '{"schema": 1'))
def test_file_that_is_no_bank(text, tmp_path):
  file = tmp_path / 'bank.json'
  file.write_text(text)
  with pytest.raises(SkillError) as error:
    bank_file.load(file)
  assert str(file) in str(error.value) and '\n' not in str(error.value)
  with pytest.raises(SkillError, match=r'none\.json.*config\.skills\.path'):
    bank_file.load(tmp_path / 'none.json')


def test_a_huge_or_deep_file_is_refused_at_once(tmp_path):
  file = tmp_path / 'bank.json'
  with open(file, 'wb') as sparse:
    sparse.truncate(2**40)  # More than any machine would hold.
  with pytest.raises(SkillError, match='larger than'):
    bank_file.load(file)
  file.write_text('[' * 100_000)
  with pytest.raises(SkillError, match='not JSON'):
    bank_file.load(file)


def _places(value, path=()):
  """Every place of a JSON value, as keys to follow."""
  yield path
  if isinstance(value, (dict, list)):
    for key in value if isinstance(value, dict) else range(len(value)):
      yield from _places(value[key], (*path, key))


SMALL = {
  **{'schema': 1, 'version': '1', 'world': 'w', 'license': '', 'heading': ''},
  **{'bullet': '- ', 'general': []},
  'task_types': {'kind': [{'id': 'a', 'title': 't', 'principle': 'p', 'when': ''}]},
  'objects': {'mug': {'id': 'b', 'title': 't', 'principle': 'p', 'when': 'w'}},
}
WRONG = (None, True, 1.0, -3, 'x\ny', '\ud800', [], [[]], {}, {'': {}}, {'a\n': 1})


@pytest.mark.parametrize(
  'place', list(_places(SMALL)), ids=lambda p: '.'.join(map(str, p))
)
def test_any_field_in_any_wrong_form_is_one_line_naming_it(place, tmp_path):
  file = tmp_path / 'bank.json'
  for wrong in WRONG:
    bank = copy.deepcopy(SMALL)
    parent = bank
    for key in place[:-1]:
      parent = parent[key]
    if place:
      parent[place[-1]] = wrong
    file.write_text(json.dumps(bank if place else wrong))
    try:
      loaded = bank_file.load(file)
    except SkillError as error:
      message = str(error)
      assert message.startswith(f'{file}: ') and '\n' not in message
      assert all(str(key) in message for key in place[:1])
    else:  # It may be right: then it can be shown and stored.
      assert isinstance(wrong, (str, list, dict)) and wrong != '\ud800', wrong
      loaded.block(loaded.everything()).encode()
