"""Small PDDL problems written for these tests, from a short description."""

GOALS = {
  'pick': (
    '(exists (?r - receptacle) (exists (?o - object) (and (inReceptacle ?o ?r)'
    ' (objectType ?o {0}Type) (receptacleType ?r {1}Type))))'
  ),
  'treat': (
    '(exists (?r - receptacle) (exists (?o - object) (and ({2} ?o)'
    ' (objectType ?o {0}Type) (receptacleType ?r {1}Type) ({3} ?o)'
    ' (inReceptacle ?o ?r))))'
  ),
  'two': (
    '(exists (?r - receptacle) (exists (?o1 - object) (and (objectType ?o1 {0}Type)'
    ' (receptacleType ?r {1}Type) (inReceptacle ?o1 ?r) (exists (?o2 - object) (and'
    ' (not (= ?o1 ?o2)) (objectType ?o2 {0}Type) (receptacleType ?r {1}Type)'
    ' (inReceptacle ?o2 ?r))))))'
  ),
  'look': (
    '(exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and'
    ' (objectType ?ot {1}Type) (toggleable ?ot) (isToggled ?ot)'
    ' (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r)))'
    ' (exists (?o - object ?a - agent) (and (objectType ?o {0}Type) (holds ?a ?o)))'
  ),
}

# name: (location, traits)
RECEPTACLES = {
  'StoveBurner_bar_1': (1, ''),
  'StoveBurner_bar_2': (1, ''),
  'StoveBurner_bar_3': (1, ''),
  'Cabinet_bar_1': (2, 'openable'),
  'Cabinet_bar_2': (2, 'openable'),
  'Fridge_bar_1': (3, 'openable'),
  'Microwave_bar_1': (4, 'openable'),
  'Sink_bar_1_bar_SinkBasin': (5, ''),
  'CounterTop_bar_1': (6, ''),
  'Desk_bar_1': (7, ''),
}
# name: (receptacles, traits)
OBJECTS = {
  'Pot_bar_1': (
    'StoveBurner_bar_1',
    'pickupable cleanable coolable isReceptacleObject',
  ),
  'Pot_bar_2': (
    'StoveBurner_bar_3',
    'pickupable cleanable coolable isReceptacleObject',
  ),
  'WineBottle_bar_1': ('Fridge_bar_1', 'pickupable coolable isCool'),
  'Apple_bar_1': (
    'Fridge_bar_1',
    'pickupable cleanable heatable coolable sliceable isCool',
  ),
  'Apple_bar_2': (
    'CounterTop_bar_1',
    'pickupable cleanable heatable coolable sliceable',
  ),
  'Bread_bar_1': ('Cabinet_bar_1', 'pickupable heatable coolable sliceable'),
  'Knife_bar_1': ('CounterTop_bar_1', 'pickupable cleanable'),
  'ButterKnife_bar_1': ('Cabinet_bar_2', 'pickupable cleanable'),
  'Mug_bar_1': (
    'CounterTop_bar_1 Desk_bar_1',
    'pickupable cleanable heatable coolable',
  ),
  'DeskLamp_bar_1': ('Desk_bar_1', 'toggleable'),
  'Lamp_bar_2': ('CounterTop_bar_1', 'pickupable toggleable'),
}


def build(goal, *words, receptacles=None, objects=None, start=0, extra=''):
  """The PDDL text of a room; `start` is the number of the agent's location."""
  receptacles = RECEPTACLES if receptacles is None else receptacles
  objects = OBJECTS if objects is None else objects
  place = {name: where for name, (where, _) in receptacles.items()}
  kind = lambda name: (
    'SinkBasin' if name.endswith('Basin') else name.partition('_bar_')[0]
  )
  facts = [f'(atLocation agent1 loc_bar_{start})']
  for name, (where, traits) in receptacles.items():
    facts.append(f'(receptacleType {name} {kind(name)}Type)')
    facts.append(f'(receptacleAtLocation {name} loc_bar_{where})')
    facts += [f'({trait} {name})' for trait in traits.split()]
  for name, (inside, traits) in objects.items():
    facts.append(f'(objectType {name} {kind(name)}Type)')
    for receptacle in inside.split():
      facts.append(f'(inReceptacle {name} {receptacle})')
      facts.append(f'(objectAtLocation {name} loc_bar_{place[receptacle]})')
    facts += [f'({trait} {name})' for trait in traits.split()]
  kinds, places = map(sorted, (set(map(kind, objects)), set(map(kind, receptacles))))
  facts += [f'(canContain {r}Type {o}Type)' for r in places for o in kinds]
  locations = sorted({start, *place.values()})
  declared = [
    ('agent1', 'agent'),
    *((name, 'object') for name in objects),
    *((name, 'receptacle') for name in receptacles),
    *((f'loc_bar_{number}', 'location') for number in locations),
    *((f'{name}Type', 'otype') for name in kinds),
    *((f'{name}Type', 'rtype') for name in places),
  ]
  return (
    '(define (problem room)\n(:domain alfred)\n(:objects\n'
    + '\n'.join(f' {name} - {kind}' for name, kind in declared)
    + ')\n(:init\n'
    + '\n'.join(facts)
    + extra
    + f')\n(:goal (and {GOALS[goal].format(*words)})))\n'
  )


MORE_OBJECTS = OBJECTS | {
  'Egg_bar_1': ('CounterTop_bar_1', 'pickupable heatable isHot'),
  'Plate_bar_1': (
    'CounterTop_bar_1',
    'pickupable cleanable heatable coolable isHot isClean',
  ),
  'Potato_bar_1': ('CounterTop_bar_1', 'pickupable sliceable isSliced'),
  'Spoon_bar_1': ('CounterTop_bar_1', 'pickupable cleanable isClean'),
  'Tomato_bar_1': (
    'CounterTop_bar_1',
    'pickupable cleanable heatable coolable sliceable',
  ),
}


def _script(text):
  """One command a line, written short: `@counter 1` goes, `+`/`-` take and move."""
  verbs = {'@': 'go to {}', '+': 'take {} from {}', '-': 'move {} to {}'}
  commands = []
  for line in text.strip().split('\n'):
    line = line.strip()
    if line[0] in verbs:
      commands.append(verbs[line[0]].format(*line[1:].split(' | ')))
    else:
      commands.append(line)
  return commands


_TREATMENTS = _script("""
  look
  @countertop 1
  +spoon 1 | countertop 1
  @sinkbasin 1
  clean spoon 1 with sinkbasin 1
  examine spoon 1
  -spoon 1 | sinkbasin 1
  @countertop 1
  +plate 1 | countertop 1
  examine plate 1
  @fridge 1
  cool plate 1 with fridge 1
  examine plate 1
  open fridge 1
  -plate 1 | fridge 1
  +winebottle 1 | fridge 1
  cool winebottle 1 with fridge 1
  examine winebottle 1
  close fridge 1
  -winebottle 1 | fridge 1
  @countertop 1
  -winebottle 1 | countertop 1
  +knife 1 | countertop 1
  slice potato 1 with knife 1
  slice tomato 1 with knife 1
  slice tomato 1 with knife 1
  @fridge 1
  slice apple 2 with knife 1
  inventory
  @countertop 1
  -knife 1 | countertop 1
  +tomato 1 | countertop 1
  examine tomato 1
  @microwave 1
  heat tomato 1 with microwave 1
  examine tomato 1
  @fridge 1
  cool tomato 1 with fridge 1
  examine tomato 1
  @sinkbasin 1
  clean tomato 1 with sinkbasin 1
  examine tomato 1
  @microwave 1
  heat tomato 1 with microwave 1
  examine tomato 1
  help
  go  to desk 1
  Look
""")
_FLOOR = _script("""
  @stoveburner 1
  +pot 2 | stoveburner 3
  look
  -pot 2 | stoveburner 2
  look
  +pot 2 | stoveburner 2
  -pot 2 | stoveburner 1
  look
  +pot 1 | stoveburner 1
  -pot 1 | stoveburner 2
  look
  +pot 1 | stoveburner 2
  examine pot 1
  @cabinet 1
  -pot 1 | cabinet 1
  open cabinet 1
  -pot 1 | cabinet 1
  @stoveburner 3
  look
  +pot 2 | stoveburner 1
  examine pot 2
  look
  -pot 2 | stoveburner 3
  look
""")
_TWICE = _script("""
  @desk 1
  +mug 1 | desk 1
  @countertop 1
  -mug 1 | countertop 1
  +mug 1 | countertop 1
  use lamp 2
  use lamp 1
  @desk 1
  use desklamp 1
  -mug 1 | desk 1
  @countertop 1
  +lamp 1 | countertop 1
  examine lamp 1
""")


def rooms():
  """(name, PDDL problem, commands that show its oddities) of every test room."""
  inner = '(inReceptacleObject Spoon_bar_1 Pot_bar_1)\n'
  wine = {'WineBottle_bar_1': OBJECTS['WineBottle_bar_1']}
  empty = {name: RECEPTACLES[name] for name in ('Desk_bar_1', 'Fridge_bar_1')}
  return [
    ('pick', build('pick', 'Apple', 'Desk'), _FLOOR),
    (
      'heat',
      build('treat', 'Apple', 'Desk', 'heatable', 'isHot', objects=MORE_OBJECTS),
      _TREATMENTS,
    ),
    (
      'inner',
      build('two', 'Pot', 'CounterTop', objects=MORE_OBJECTS, extra=inner, start=1),
      _FLOOR,
    ),
    ('look', build('look', 'Mug', 'DeskLamp'), _TWICE),
    ('toggle', build('look', 'Mug', 'Lamp'), _TWICE),
    (
      'small',
      build(
        'treat',
        'WineBottle',
        'Desk',
        'coolable',
        'isCool',
        receptacles=empty,
        objects=wine,
      ),
      ['open fridge 1'],
    ),
  ]
