import collections
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sdar_jax.envs.webshop import generated, instruction
from sdar_jax.envs.webshop.generated import GeneratedGoals
from sdar_jax.envs.webshop.instruction import ShopInstruction
from sdar_jax.prompts import bank_file

# SHA-256 over the catalogue and all goals: they are what results refer to, so a change
# of theirs needs a new generated.VERSION and then a new value here.
PINNED = '46dee05a8d74951699fa50b81d1592686d625d8d10c53130f610b11940058591'
TINY = Path(__file__).parents[3] / 'experiments/tiny/webshop/skills.json'


def fingerprint() -> str:
  digest = hashlib.sha256(generated.digest().encode())
  for product in generated.catalogue():
    digest.update(repr(product).encode())
  for split in generated.SPLITS:
    tasks = GeneratedGoals(split)
    digest.update(tasks.digest.encode())
    for task in tasks:
      digest.update(repr((task.task_id, task.metadata, task.payload)).encode())
  return digest.hexdigest()


def wished(goal) -> tuple:
  return goal.query, goal.attributes, goal.options


def test_the_shop_is_pinned():
  assert fingerprint() == PINNED


def test_the_shop_does_not_depend_on_the_process():
  program = 'import test_generated; print(test_generated.fingerprint())'
  path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
  result = subprocess.run(
    [sys.executable, '-c', program],
    env={**os.environ, 'PYTHONHASHSEED': '1', 'PYTHONPATH': path},
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.strip() == fingerprint()


def test_the_catalogue_is_as_large_as_promised():
  products = list(generated.catalogue())
  assert len(products) == 960
  assert collections.Counter(p.category for p in products) == {
    name: 120 for name in generated.categories()
  }
  assert len(generated.categories()) == 8
  assert len({p.query for p in products}) == 24


def test_products_look_like_products():
  for product in generated.catalogue():
    row = generated.categories()[product.category]
    assert re.fullmatch(r'B0[A-Z]{8}', product.asin)
    line, style, noun, _, purpose = product.title.lower().split()
    assert noun == product.query and noun in row.nouns
    assert style in row.styles and purpose in row.purposes
    assert product.attributes == row.lines[line]
    assert list(product.options) == list(row.options)
    for name, values in product.options.items():
      assert values and len(set(values)) == len(values)
      assert set(values) <= set(row.options[name])
    assert len(product.prices) == 1 and 10 < product.prices[0] < 60


def test_asins_differ_early():
  asins = [product.asin for product in generated.catalogue()]
  assert len(set(asins)) == len(asins)
  for name in generated.categories():
    own = [p.asin for p in generated.catalogue() if p.category == name]
    assert len({asin[:6] for asin in own}) == len(own)
    assert len({asin[6:] for asin in own}) == 1


def test_the_vocabulary_is_small():
  words = set()
  for product in generated.catalogue():
    text = ' '.join([product.title, *product.bullet_points, product.search_text])
    words |= set(re.findall('[a-z]+', text.lower()))
    words |= {product.asin[2:6], product.asin[6:]}
  for split in generated.SPLITS:
    for task in GeneratedGoals(split):
      words |= set(re.findall('[a-z0-9]+', task.goal.lower()))
  assert len(words) <= 900


def test_attributes_are_told_by_features_pages_and_by_nothing_else():
  attributes = {
    attribute
    for row in generated.categories().values()
    for has in row.lines.values()
    for attribute in has
  }
  for product in generated.catalogue():
    features = ' '.join(product.bullet_points).lower()
    said = {attribute for attribute in attributes if attribute in features}
    assert said == set(product.attributes)
    shown = f'{product.title} {product.search_text}'.lower()
    assert not any(attribute in shown for attribute in attributes)


def test_every_attribute_belongs_to_two_lines_and_every_wish_to_one_or_two():
  for row in generated.categories().values():
    attributes = {attribute for has in row.lines.values() for attribute in has}
    assert len(row.lines) == len(attributes) == 5
    for attribute in attributes:
      assert len(row.lines_with([attribute])) == 2
    for line, has in row.lines.items():
      assert row.lines_with(has) == (line,)


def test_words_mean_one_thing():
  kinds, lines = collections.Counter(), collections.Counter()
  for row in generated.categories().values():
    kinds.update(row.nouns)
    lines.update(list(row.lines))
    values = [value for group in row.options.values() for value in group]
    assert len(set(values)) == len(values)
    assert not set(row.styles) & set(row.lines)
  assert set(kinds.values()) == set(lines.values()) == {1}


def test_splits_have_their_sizes_and_all_categories():
  for split, size in generated.SPLITS.items():
    tasks = GeneratedGoals(split)
    assert len(tasks) == len(list(tasks)) == size
    counts = collections.Counter(tasks[i].task_type for i in range(160))
    assert counts == {name: 20 for name in generated.categories()}


def test_no_wish_instruction_or_goal_occurs_in_two_splits():
  seen = collections.defaultdict(set)
  for split, goals in generated.goals().items():
    for goal in goals:
      for fact in (goal.goal_id, goal.instruction_text, wished(goal)):
        seen[fact].add(split)
  assert {len(splits) for splits in seen.values()} == {1}
  for goals in generated.goals().values():
    assert len({goal.instruction_text for goal in goals}) == len(goals)
    assert len({goal.goal_id for goal in goals}) == len(goals)


def test_unseen_goals_are_made_of_products_of_their_own():
  made = {
    split: {goal.asin for goal in goals} for split, goals in generated.goals().items()
  }
  seen = made['train'] | made['valid_seen']
  unseen = made['valid_unseen'] | made['test']
  assert not seen & unseen
  assert len(made['valid_seen'] & made['train']) > 200
  assert len(seen) > 600 and len(unseen) > 200


def test_goals_are_true_of_their_products():
  catalogue = generated.catalogue()
  for goals in generated.goals().values():
    for goal in goals:
      product = catalogue[catalogue.row_of(goal.asin)]
      assert set(goal.attributes) <= set(product.attributes)
      assert product.prices[0] < goal.price_upper <= product.prices[0] + 30
      assert dict(goal.options).keys() == product.options.keys()
      for name, value in goal.options:
        assert value in product.options[name]


def test_instructions_say_the_whole_goal():
  for goals in generated.goals().values():
    for goal in goals:
      asked = instruction.read(goal.instruction_text)
      assert asked.kind == goal.query and asked.attributes == goal.attributes
      assert tuple(sorted(asked.options.items())) == goal.options
      assert asked.limit == goal.price_upper


def test_both_wordings_occur():
  starts = collections.Counter(task.goal[:5] for task in GeneratedGoals('test'))
  assert len(starts) == instruction.WORDINGS and min(starts.values()) > 150


@pytest.mark.parametrize('wording', range(instruction.WORDINGS))
@pytest.mark.parametrize('attributes', [('light',), ('light', 'loud')])
@pytest.mark.parametrize('options', [{'color': 'red'}, {'color': 'red', 'size': 'big'}])
def test_wishes_are_read_as_they_were_written(wording, attributes, options):
  asked = ShopInstruction('drum', attributes, options, 40)
  assert instruction.read(instruction.write(asked, wording)) == asked


def test_other_instructions_are_not_wishes():
  assert (
    instruction.read('i need a red drum, and price lower than 40.00 dollars') is None
  )
  assert instruction.read('') is None


def test_tasks_tell_retrieval_no_more_than_the_instruction_does():
  for task in GeneratedGoals('valid_unseen'):
    assert task.metadata == {
      'task_type': task.task_type,
      'object': instruction.read(task.goal).kind,
    }
    assert generated.category_of(task.metadata['object']) == task.task_type


def test_tasks_pickle():
  task = GeneratedGoals('train')[77]
  assert pickle.loads(pickle.dumps(task)) == task
  assert task.task_id == f'generated/train/{task.payload.goal_id}'


def test_digests_tell_splits_apart():
  digests = [GeneratedGoals(split).digest for split in generated.SPLITS]
  assert len(set(digests)) == len(digests)
  assert GeneratedGoals('train').digest == digests[0]


def test_wrong_requests_are_one_line():
  with pytest.raises(ValueError, match=r"^split 'dev': .*valid_unseen, test$"):
    GeneratedGoals('dev')
  tasks = GeneratedGoals('test')
  for index in (500, -1):
    with pytest.raises(IndexError, match='test has 500 tasks'):
      tasks[index]


def test_both_skill_banks_know_the_lines():
  own = bank_file.load(Path(generated.__file__).with_name('skills.json'))
  tiny = bank_file.load(TINY)
  assert own.world == tiny.world == 'webshop'
  assert set(tiny.task_types) == set(generated.categories())
  for name, row in generated.categories().items():
    told = ' '.join(skill.principle for skill in own.task_types[name])
    for line, has in row.lines.items():
      assert f'{line.title()} is {" and ".join(has)}' in told
    terse = {skill.title: skill.principle for skill in tiny.task_types[name]}
    assert terse == {
      attribute: ' '.join(row.lines_with([attribute]))
      for has in row.lines.values()
      for attribute in has
    }


def test_the_bank_covers_the_official_categories():
  own = bank_file.load(Path(generated.__file__).with_name('skills.json'))
  official = {'beauty', 'electronics', 'fashion', 'garden', 'grocery'}
  assert set(own.task_types) == official | set(generated.categories())
  text = json.dumps([skill.text for skill in own.general])
  assert 'Velmo' not in text
